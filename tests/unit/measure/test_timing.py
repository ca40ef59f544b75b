"""Order, repeats and budget of runs, spreads and rates: with a clock that the tests turn."""

import pytest

from indexshare.measure.timing import Spread, interleave, seconds_per_call


class Clock:
    """Seconds that pass only when a job says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def job(self, name: str, seconds: float, log: list[str]) -> object:
        def run() -> str:
            self.now += seconds
            log.append(name)
            return f"{name}{log.count(name)}"

        return run


def test_contenders_take_turns() -> None:
    clock, log, told = Clock(), [], []
    jobs = {name: clock.job(name, 1.0, log) for name in "ab"}
    results = interleave(jobs, 3, clock=clock, on_run=lambda name, turn: told.append((name, turn)))
    assert log == list("ababab")
    assert results == {"a": ["a1", "a2", "a3"], "b": ["b1", "b2", "b3"]}
    assert told == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]


def test_a_slow_contender_is_run_once_at_least_and_not_beyond_its_budget() -> None:
    clock, log = Clock(), []
    jobs = {"slow": clock.job("slow", 50.0, log), "quick": clock.job("quick", 4.0, log)}
    results = interleave(jobs, 5, budget_s=10.0, clock=clock)
    assert len(results["slow"]) == 1
    assert len(results["quick"]) == 3  # 4 + 4 are below the budget, 12 are not
    assert log[:2] == ["slow", "quick"]


def test_spread() -> None:
    spread = Spread.of([3.0, 1.0, 10.0])
    assert (spread.median, spread.low, spread.high, spread.runs) == (3.0, 1.0, 10.0, 3)
    assert Spread.of([1.0, 2.0]).median == 1.5
    rate = spread.rate(30.0)
    assert (rate.median, rate.low, rate.high, rate.runs) == (10.0, 3.0, 30.0, 3)
    assert spread.to_dict() == {"median": 3.0, "low": 1.0, "high": 10.0, "runs": 3}


@pytest.mark.parametrize(("seconds", "calls"), [(0.04, 3), (0.2, 1)])
def test_calls_are_repeated_until_they_can_be_timed(seconds: float, calls: int) -> None:
    clock, log = Clock(), []
    job = clock.job("x", seconds, log)
    assert seconds_per_call(job, least_s=0.1, clock=clock) == pytest.approx(seconds)  # type: ignore[arg-type]
    assert len(log) == calls + 1  # the first call is not timed
