"""Progress on standard error: bars for measurements, a line for work whose length is not known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from rich.text import Text

from indexshare.cli.output import console, note, printable

if TYPE_CHECKING:
    from rich.progress import Progress

_BAR_WIDTH, _NARROW = 40, 100  # columns
_LONG_S = 2.0  # after which something is said where nothing can be shown


def progress_line(before: str, after: str) -> Progress:
    """A bar between two texts and the time left, one line however narrow the terminal; nothing where there is none.

    The texts are templates as in rich's `TextColumn`.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    def one_line() -> Column:
        return Column(no_wrap=True, overflow="ellipsis")

    out = console(stderr=True)
    return Progress(
        TextColumn(before, table_column=one_line()),
        BarColumn(bar_width=None if out.width < _NARROW else _BAR_WIDTH),
        TextColumn(after, table_column=one_line()),
        TimeRemainingColumn(compact=True, table_column=one_line()),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    )


class Status(AbstractContextManager["Status"]):
    """One line that says what is being done, on a terminal, gone at the end; elsewhere a line if it takes long."""

    def __init__(self) -> None:
        self._out = console(stderr=True)
        self._status = self._out.status("") if self._out.is_terminal else None
        self._began, self._shown, self._said = time.perf_counter(), 0.0, False

    def __enter__(self) -> Status:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, doing: str, what: str) -> None:
        """`doing` something to `what`: shown ten times a second at most."""
        now = time.perf_counter()
        if self._status is not None and now - self._shown > 0.1:
            self._shown = now
            line = Text(printable(f"{doing} {what}").replace("\n", " "))
            line.truncate(max(1, self._out.width - 3), overflow="ellipsis")
            self._status.update(line)
        elif self._status is None and not self._said and now - self._began > _LONG_S:
            self._said = True
            note(f"{doing} {what}; this takes a while")


class MeasuringBar(AbstractContextManager["MeasuringBar"]):
    """One bar at a time on a terminal, gone when its measurement is done; elsewhere one line about each."""

    def __init__(self) -> None:
        self._progress = progress_line(
            "{task.description}", "{task.completed:,.0f} of {task.total:,.0f} {task.fields[unit]}, {task.fields[rate]}"
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
