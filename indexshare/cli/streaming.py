"""Text as it is made: a bar while the prompt is read, the pieces as they come, and what it cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from indexshare.cli.output import console, note, size, write
from indexshare.planner.machine import peak_memory_bytes

if TYPE_CHECKING:
    from indexshare.engine.llm import LLM
    from indexshare.engine.outputs import CompletionOutput, RequestStats
    from indexshare.engine.params import SamplingParams


class ReadingBar(AbstractContextManager["ReadingBar"]):
    """A bar on standard error while the prompt is read, gone when the first token comes; terminals only."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        out = console(stderr=True)
        self._progress = Progress(
            TextColumn("reading"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens, {task.fields[rate]}"),
            TimeRemainingColumn(),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self._task = self._progress.add_task("", total=1, rate="")
        self._began = time.perf_counter()

    def __enter__(self) -> ReadingBar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` prompt tokens are read."""
        rate = done / max(time.perf_counter() - self._began, 1e-9)
        self._progress.update(self._task, completed=done, total=total, rate=f"{rate:,.0f} tokens/s")
        if done == total:
            self.stop()

    def stop(self) -> None:
        """Remove the bar; harmless when it is gone already."""
        self._progress.stop()


def stream(llm: LLM, prompt: str | list[int], params: SamplingParams, *, quiet: bool = False) -> CompletionOutput:
    """Complete one prompt, writing the text to standard output as it is made unless `quiet`.

    Closing down on Ctrl+C leaves the terminal on a fresh line and the cache blocks free.
    """
    output, shown = None, ""
    bar: AbstractContextManager[Any] = nullcontext() if quiet else ReadingBar()
    with bar as reading:
        on_prefill: Callable[[int, int], None] | None = reading
        for chunk in llm.stream(prompt, params, on_prefill=on_prefill):
            if chunk.text and not quiet:
                if not shown and reading is not None:
                    reading.stop()
                write(chunk.text)
                shown = chunk.text
            output = chunk.output
    assert output is not None, "the last chunk carries the output"
    if not quiet and not shown.endswith("\n"):
        write("\n")
    return output


def cost_lines(stats: RequestStats, *, context: str) -> list[str]:
    """What a completion cost, in two lines; `context` describes the prompt."""
    passes = stats.index_passes_run + stats.index_passes_saved
    saved = f" ({stats.index_passes_saved / passes:.0%} saved)" if passes else ""
    return [
        f"{context}; prefill {stats.prefill_s:.1f} s, {stats.prefill_tokens_per_s:,.0f} tokens/s; "
        f"{stats.completion_tokens:,} tokens written, {stats.decode_tokens_per_s:,.1f} tokens/s",
        f"index passes {stats.index_passes_run:,} run, {stats.index_passes_saved:,} spared{saved}; "
        f"{stats.share_attended:.1%} of tokens attended; peak memory {size(peak_memory_bytes())}",
    ]


def report_cost(stats: RequestStats, *, context: str) -> None:
    """Write `cost_lines` to standard error, set off from the text on a terminal."""
    if sys.stdout.isatty() and sys.stderr.isatty():
        note("")
    for line in cost_lines(stats, context=context):
        note(line)


def as_json(output: CompletionOutput) -> dict[str, Any]:
    """A completion as plain values."""
    return {
        "text": output.text,
        "token_ids": output.token_ids,
        "finish_reason": output.finish_reason,
        "stats": output.stats.to_dict() | {"peak_memory_bytes": peak_memory_bytes()},
    }
