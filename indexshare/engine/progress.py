"""What is told while prompts are read and completions written: a callback, and on request a bar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from indexshare.engine.core import Generation

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class GenerationProgress:
    """Follows some generations from step to step; a context manager.

    Args:
        generations: the ones to follow.
        show: draw a bar with rate and time left on standard error.
        on_prefill: called with (prompt tokens done, prompt tokens in all) whenever the first number grows.
    """

    def __init__(
        self,
        generations: Sequence[Generation],
        *,
        show: bool = False,
        on_prefill: Callable[[int, int], None] | None = None,
    ) -> None:
        self._generations = generations
        self._on_prefill = on_prefill
        self._prompt_tokens = sum(g.request.prompt_len for g in generations)
        self._done = 0
        self._bar: Progress | None = None
        self._tasks: list[TaskID] = []
        if show:
            self._open_bar()

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        def line() -> Column:
            return Column(no_wrap=True, overflow="ellipsis")  # a narrow terminal shows less, on as many lines

        self._bar = Progress(
            TextColumn("{task.description}", table_column=line()),
            BarColumn(bar_width=None),
            MofNCompleteColumn(table_column=line()),
            TextColumn("{task.fields[rate]}", table_column=line()),
            TimeRemainingColumn(compact=True, table_column=line()),
            console=Console(stderr=True),
        )
        most = sum(g.request.params.max_tokens for g in self._generations)
        for name, total in (("reading", self._prompt_tokens), ("writing", most)):
            self._tasks.append(self._bar.add_task(name, total=total, rate=""))

    def __enter__(self) -> GenerationProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self) -> None:
        """Look at the generations after a step."""
        if self._bar is None and (self._on_prefill is None or self._done == self._prompt_tokens):
            return
        done = max(self._done, sum(g.prefilled for g in self._generations))
        if done > self._done and self._on_prefill is not None:
            self._on_prefill(done, self._prompt_tokens)
        self._done = done
        if self._bar is not None:
            # A finished generation writes no more, so its unused tokens leave the total.
            most = sum(g.request.num_outputs if g.finished else g.request.params.max_tokens for g in self._generations)
            written = sum(g.request.num_outputs for g in self._generations)
            for task, value, total in zip(self._tasks, (done, written), (self._prompt_tokens, most), strict=True):
                speed = self._bar.tasks[task].speed
                rate = "" if speed is None else f"{speed:,.0f} tokens/s"
                self._bar.update(task, completed=value, total=total, rate=rate)
