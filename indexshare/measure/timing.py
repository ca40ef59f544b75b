"""Repeated measurements, alternating between contenders; medians with their whole range. No torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and range of repeated measurements, in their own unit.

    Attributes:
        median, low, high: of the measurements.
        runs: how many there were.
    """

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one measurement."""
        ordered = sorted(values)
        assert ordered, "a spread of nothing"
        return cls(median=statistics.median(ordered), low=ordered[0], high=ordered[-1], runs=len(ordered))

    def rate(self, amount: float) -> Spread:
        """`amount` per second where these are seconds: the longest time is the lowest rate."""
        return Spread(median=amount / self.median, low=amount / self.high, high=amount / self.low, runs=self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"median": self.median, "low": self.low, "high": self.high, "runs": self.runs}


def interleave(
    jobs: Mapping[str, Callable[[], T]],
    repeats: int,
    *,
    budget_s: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
    on_run: Callable[[str, int], None] | None = None,
) -> dict[str, list[T]]:
    """Run every job up to `repeats` times, in turn (A B A B), so that a slow minute of the machine affects all of them.

    Args:
        jobs: what to run, by name.
        repeats: most runs of each, at least 1.
        budget_s: a job that has run for so many seconds in all is not run again.
        clock: seconds from any start; tests bring their own.
        on_run: called with name and number (from 0) before each run.

    Returns:
        What each job returned, at least one result of each.
    """
    results: dict[str, list[T]] = {name: [] for name in jobs}
    spent = dict.fromkeys(jobs, 0.0)
    for turn in range(repeats):
        for name, job in jobs.items():
            if turn and spent[name] >= budget_s:
                continue
            if on_run is not None:
                on_run(name, turn)
            started = clock()
            results[name].append(job())
            spent[name] += clock() - started
    return results


def seconds_per_call(
    function: Callable[[], object], *, least_s: float = 0.1, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Mean seconds of one call over as many calls as take `least_s` together; the first is not counted."""
    function()  # compiles, faults pages in
    calls, started = 0, clock()
    while True:
        function()
        calls += 1
        taken = clock() - started
        if taken >= least_s:
            return taken / calls
