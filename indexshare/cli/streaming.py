"""Text as it is made: a bar while the prompt is read, the pieces as they come, and what it cost."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from indexshare.cli.measuring import progress_line
from indexshare.cli.output import console, note, print_table, size, write
from indexshare.planner.machine import peak_memory_bytes
from indexshare.text.files import plural

if TYPE_CHECKING:
    from indexshare.engine.llm import LLM
    from indexshare.engine.outputs import CompletionOutput, RequestStats, TokenLogprobs
    from indexshare.engine.params import SamplingParams
    from indexshare.text.tokenizer import Tokenizer

DRAFTED = "green"  # style of accepted drafts


class ReadingBar(AbstractContextManager["ReadingBar"]):
    """A bar on standard error while the prompt is read, gone when the first token comes; terminals only."""

    def __init__(self) -> None:
        self._progress = progress_line("reading", "{task.fields[read]}")
        self._task = self._progress.add_task("", total=1, read="the first tokens")
        self._began = time.perf_counter()

    def __enter__(self) -> ReadingBar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` prompt tokens are read."""
        rate = done / max(time.perf_counter() - self._began, 1e-9)
        read = f"{done:,} of {total:,} tokens, {rate:,.0f} tokens/s"
        self._progress.update(self._task, completed=done, total=total, read=read)
        if done == total:
            self.stop()

    def stop(self) -> None:
        """Remove the bar; harmless when it is gone already."""
        self._progress.stop()


def stream(llm: LLM, prompt: str | list[int], params: SamplingParams, *, show_drafts: bool = False) -> CompletionOutput:
    """Complete one prompt, writing the text to standard output as it is made; accepted drafts in colour if wanted.

    Closing down on Ctrl+C leaves the terminal on a fresh line and the cache blocks free.
    """
    output, shown = None, ""
    with ReadingBar() as reading:
        for chunk in llm.stream(prompt, params, on_prefill=reading):
            if chunk.text:
                if not shown:
                    reading.stop()
                write(chunk.text, style=DRAFTED if show_drafts and chunk.drafted else None)
                shown = chunk.text
            output = chunk.output
    assert output is not None, "the last chunk carries the output"
    if not shown.endswith("\n"):
        write("\n")
    return output


def write_each(
    llm: LLM,
    prompts: Sequence[str | list[int]],
    params: Sequence[SamplingParams],
    describe: Callable[[CompletionOutput], str],
    *,
    show_drafts: bool = False,
) -> None:
    """Write one text as it is made, or several, numbered, when all of them are there; then what each cost.

    `describe` says what the prompt was; log-probabilities are shown where they were asked for, and what drafts were
    good for if `show_drafts`.
    """
    if len(prompts) == 1:
        outputs = [stream(llm, prompts[0], params[0], show_drafts=show_drafts)]
    else:
        outputs = llm.generate(prompts, params, progress=console(stderr=True).is_terminal)
    for number, output in enumerate(outputs, 1):
        if len(prompts) > 1:
            note(f"[{number} of {len(prompts)}]")
            write(output.text + ("" if output.text.endswith("\n") else "\n"))
        if output.logprobs is not None and llm.tokenizer is not None:
            show_logprobs(output.logprobs, llm.tokenizer)
        report_cost(output.stats, context=describe(output))
        if show_drafts:
            report_drafts(output.stats)


def cost_lines(stats: RequestStats, *, context: str) -> list[str]:
    """What a completion cost, in a few lines; `context` describes the prompt."""
    passes = stats.index_passes_run + stats.index_passes_saved
    known = f", {stats.cached_tokens:,} of them from the cache" if stats.cached_tokens else ""
    saved = f" ({stats.index_passes_saved / passes:.0%} saved)" if passes else ""
    # The first token comes out of the prefill, so that one alone has no rate.
    rate = f", {stats.decode_tokens_per_s:,.1f} tokens/s" if stats.completion_tokens > 1 else ""
    lines = [
        f"{context}{known}; prefill {stats.prefill_s:.1f} s, {stats.prefill_tokens_per_s:,.0f} tokens/s; "
        f"{plural(stats.completion_tokens, 'token')} written{rate}",
        f"index passes {stats.index_passes_run:,} run, {stats.index_passes_saved:,} spared{saved}; "
        f"{stats.share_attended:.1%} of tokens attended; peak memory {size(peak_memory_bytes())}",
    ]
    if stats.spill_rows:
        lines.append(
            f"{stats.spill_hit_rate:.1%} of {stats.spill_rows:,} cache rows were in memory; "
            f"{size(stats.spill_bytes_read)} read from files, {stats.spill_wait_s:.1f} s waited for them"
        )
    return lines


def report_drafts(stats: RequestStats) -> None:
    """What drafts were good for, on standard error: in all, and by their place in a round."""
    if not stats.draft_rounds:
        note("no drafts were verified (--draft-tokens sets how many there are)")
        return
    note(
        f"drafts: {stats.accepted_tokens:,} of {stats.drafted_tokens:,} accepted ({stats.acceptance:.0%}) in "
        f"{plural(stats.draft_rounds, 'round')}, {stats.accepted_length:.2f} tokens a round with the one behind them; "
        f"{stats.draft_s:.2f} s drafting, {stats.verify_s:.2f} s verifying"
    )
    places = zip(stats.drafted_by_place, stats.accepted_by_place, strict=True)
    rows = [
        (str(place), f"{drafted:,}", f"{accepted:,}", f"{accepted / drafted:.0%}")
        for place, (drafted, accepted) in enumerate(places, 1)
    ]
    print_table("", ("place", "drafted", "accepted", "share"), rows, to=console(stderr=True))


def report_cost(stats: RequestStats, *, context: str) -> None:
    """Write `cost_lines` to standard error, set off from the text on a terminal."""
    if sys.stdout.isatty() and sys.stderr.isatty():
        note("")
    for line in cost_lines(stats, context=context):
        note(line)


def as_json(output: CompletionOutput, tokenizer: Tokenizer) -> dict[str, Any]:
    """A completion as plain values; `logprobs` only where they were asked for."""
    logprobs = {} if output.logprobs is None else {"logprobs": [token_json(e, tokenizer) for e in output.logprobs]}
    return {
        "text": output.text,
        "token_ids": output.token_ids,
        **logprobs,
        "finish_reason": output.finish_reason,
        "stats": output.stats.to_dict() | {"peak_memory_bytes": peak_memory_bytes()},
    }


def token_json(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    """One token with its log-probability and those of the most likely ones, as plain values."""
    top = [{"token": token_text(i, tokenizer), "id": i, "logprob": value} for i, value in entry.top]
    own = {"token": token_text(entry.token_id, tokenizer), "id": entry.token_id, "logprob": entry.logprob}
    return own | {"top": top}


def token_text(token_id: int, tokenizer: Tokenizer) -> str:
    """What one token stands for; U+FFFD for a part of a character, nothing for an id without a token."""
    if token_id >= tokenizer.vocab_size:  # embedding tables are often padded beyond the vocabulary
        return ""
    return tokenizer.token_bytes(token_id).decode("utf-8", errors="replace")


def show_logprobs(entries: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> None:
    """A line for every token on standard error: its probability, and the most likely ones in its place."""
    rows = []
    for entry in entries:
        others = "  ".join(f"{token_text(i, tokenizer)!r} {math.exp(value):.1%}" for i, value in entry.top)
        own = repr(token_text(entry.token_id, tokenizer))
        rows.append((own, f"{entry.logprob:.4f}", f"{math.exp(entry.logprob):.1%}", others))
    columns = ("token", "log-probability", "probability", "most likely")
    print_table("tokens by the model's own distribution", columns, rows, to=console(stderr=True), text=(0, 3))
