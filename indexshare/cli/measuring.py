"""Progress of several long measurements, one after the other, on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from indexshare.cli.output import console, note


class MeasuringBar(AbstractContextManager["MeasuringBar"]):
    """One bar at a time on a terminal, gone when its measurement is done; elsewhere one line about each."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        out = console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} {task.fields[unit]}, {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self._name = ""
        self._began = 0.0

    def __enter__(self) -> MeasuringBar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    @contextmanager
    def stage(self, name: str, unit: str = "tokens") -> Iterator[MeasuringBar]:
        """One measurement, from its beginning to its end."""
        self.begin(name, unit)
        yield self
        self.end()

    def begin(self, name: str, unit: str = "tokens") -> None:
        """A measurement starts."""
        self._name, self._began = name, time.perf_counter()
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._progress.add_task(name, total=1, unit=unit, rate="")

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` units of the measurement are done."""
        rate = done / max(time.perf_counter() - self._began, 1e-9)
        for task in self._progress.task_ids:
            self._progress.update(task, completed=done, total=total, rate=f"{rate:,.0f}/s")

    def end(self) -> None:
        """The measurement is over: say how long it took."""
        note(f"{self._name}: {time.perf_counter() - self._began:,.1f} s")
