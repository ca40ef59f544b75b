"""`indexshare bench`: how fast and how large a model runs here, beside what this machine can do."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from indexshare.cli.options import CacheOptions
from indexshare.cli.output import console, note, print_json, print_pairs, print_table, size
from indexshare.text.files import plural

if TYPE_CHECKING:
    from indexshare.measure.ceilings import Bound, Ceilings
    from indexshare.measure.report import BenchReport, BenchSettings
    from indexshare.measure.timing import Spread

_LENGTHS = (1024, 4096, 16384)
_KERNEL_CONTEXT = 65536
_NAMES = {"model": "as it is", "all-full": "every layer Full", "full-attention": "full attention"}
_WHY = {
    "arithmetic": "arithmetic",
    "memory": "reading memory",
    "neither": "neither (overhead)",
}
Several = Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="", show_default=False)]
Part = Literal["kernels", "speed", "memory"]
Variant = Literal["model", "all-full", "full-attention"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What to measure.

    Parameters
    ----------
    lengths
        Prompt lengths in tokens, each also a depth to write at. Of 1024, 4096 and 16384 those that fit, unless given.
    decode_tokens
        Tokens to write at each depth in each run.
    repeats
        Most runs of each variant at each length.
    budget
        Seconds after which a variant at a length is not run again.
    parts
        What to measure: kernels (alone), speed (of the model), memory (in processes of their own). All unless given.
    variants
        Which forms of the model to time: model (as it is), all-full (an indexer in every layer), full-attention
        (no selection). All unless given.
    kernel_context
        Keys for the kernels measured alone. 65536, or the model's context if that is shorter.
    threads
        CPU threads to use. What torch takes by itself (the cores) unless given.
    """

    lengths: Several = ()
    decode_tokens: int = 16
    repeats: int = 3
    budget: float = 60.0
    parts: Annotated[tuple[Part, ...], Parameter(consume_multiple=True, negative="", show_default=False)] = ()
    variants: Annotated[tuple[Variant, ...], Parameter(consume_multiple=True, negative="", show_default=False)] = ()
    kernel_context: int | None = None
    threads: int | None = None

    def settings(self, context: int, *, selects: bool = True, has_kernels: bool = True) -> BenchSettings:
        """For a model made for `context` positions, with what was not given filled in.

        One that attends to everything has no other forms, and not every attention has kernels of its own.
        """
        import torch

        from indexshare.measure.report import PARTS, VARIANTS, BenchSettings

        fitting = tuple(n for n in _LENGTHS if n + self.decode_tokens < context)
        return BenchSettings(
            lengths=tuple(sorted(set(self.lengths))) or fitting or (max(1, context - self.decode_tokens - 1),),
            decode_tokens=self.decode_tokens,
            repeats=self.repeats,
            budget_s=self.budget,
            parts=self.parts or (PARTS if has_kernels else tuple(part for part in PARTS if part != "kernels")),
            variants=self.variants or (VARIANTS if selects else VARIANTS[:1]),
            kernel_context=min(_KERNEL_CONTEXT, context) if self.kernel_context is None else self.kernel_context,
            threads=torch.get_num_threads() if self.threads is None else self.threads,
        )


def bench(
    model: str = "nano",
    /,
    *,
    options: BenchOptions | None = None,
    dtype: str | None = None,
    cache: CacheOptions | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Measure reading, writing and memory of a model on this CPU, beside the machine's own limits.

    Kernels are checked against their references first; if one is wrong, nothing is timed and the exit code is 1.
    Times are medians of runs in turn, with their range.

    Parameters
    ----------
    model
        Name of a shipped model, a model directory, or a config.json or preset, which get random weights.
    dtype
        Type of weights and computing, and of the cache unless it is given: float32 or bfloat16. As stored unless given.
    json
        Print one JSON object instead of tables.
    """
    from indexshare.cli.measuring import MeasuringBar
    from indexshare.measure.report import run_bench
    from indexshare.measure.subject import Subject

    subject = Subject.find(model, dtype, *(cache or CacheOptions()).names)
    settings = (options or BenchOptions()).settings(
        subject.config.max_position_embeddings, selects=subject.config.selects, has_kernels=subject.has_kernels
    )
    with MeasuringBar() as bar:
        report = run_bench(subject, settings, shlex.join(["indexshare", *sys.argv[1:]]), bar)
    if json:
        print_json(report.to_dict())
    else:
        _show(report)
    for check in report.failed:
        note(f"not measured: {check.what} is wrong, off by {check.value:.2e} where {check.bound:.0e} is allowed")
    return 1 if report.failed else 0


def _show(report: BenchReport) -> None:
    out, subject, settings = console(), report.subject, report.settings
    weights = "random weights" if subject.directory is None else "trained weights"
    dtype = str(subject.dtype).removeprefix("torch.")
    print_pairs(
        f"{subject.name}: {weights}, {dtype}, threads: {settings.threads}, {report.date}",
        [
            ("processor", f"{report.machine['processor']}, {plural(report.machine['cores'], 'core')} usable"),
            ("load before", f"{report.machine['load_average']:.2f} processes on average"),
            ("checks", ", ".join(f"{c.what} {'ok' if c.passed else 'WRONG'}" for c in report.gate)),
        ],
        to=out,
    )
    if report.ceilings is None:
        return
    out.print()
    _show_ceilings(report.ceilings, dtype)
    sections = ((report.kernels, _show_kernels), (report.speed, _show_speed), (report.memory, _show_memory))
    for found, show in sections:
        if found:
            out.print()
            show(report)


def _show_ceilings(ceilings: Ceilings, dtype: str) -> None:
    rows = [
        (f"matrix product, {dtype}", _rate(ceilings.matrix, 1e9, "GFLOP/s")),
        ("memory read", _rate(ceilings.read, 1e9, "GB/s")),
        ("memory copied, read and written", _rate(ceilings.copy, 1e9, "GB/s")),
    ]
    print_pairs("What this machine can do", rows, to=console())


def _show_kernels(report: BenchReport) -> None:
    rows = [
        (
            result.kernel.name, f"{result.kernel.rows:,}", f"{result.kernel.context:,}", _time(result.seconds),
            *_shares(result.bound),
        )
        for result in report.kernels
    ]  # fmt: skip
    columns = ("kernel alone", "queries", "keys", "time of one call", "matrix rate", "read rate", "bound by")
    print_table("Kernels: time, and shares of the two rates above", columns, rows, to=console())


def _show_speed(report: BenchReport) -> None:
    out = console()
    both = (("Prefill", "prefill_s", "prefill", "prefill_flops"), ("Decode", "decode_s", "decode", "decode_bytes"))
    for title, times, bound, amount in both:
        rows = []
        for result in report.speed:
            spread: Spread | None = getattr(result, times)
            if spread is not None:
                tokens = result.length if times == "prefill_s" else 1
                stage, share = getattr(result, amount).largest
                cells = (f"{tokens / spread.median:,.1f}", *_shares(getattr(result, bound)))
                most = f"{stage.replace('_', ' ')} {share:.0%}"
                rows.append((f"{result.length:,}", _NAMES[result.variant], _time(spread), *cells, most))
        most_of = "most operations" if times == "prefill_s" else "most bytes"
        columns = ("tokens", "variant", "time", "tokens/s", "matrix rate", "read rate", "bound by", most_of)
        print_table(f"{title}: median and range", columns, rows, to=out)
        out.print()
    facts: dict[str, Any] = report.to_dict()
    compared = [
        (
            f"{ratio['length']:,}", _NAMES[ratio["against"]],
            "-" if ratio["prefill"] is None else f"{ratio['prefill']:.2f}", f"{ratio['decode']:.2f}",
        )
        for ratio in facts["ratios"]
    ]  # fmt: skip
    if compared:
        title = "Times as long as the model as it is"
        print_table(title, ("tokens", "variant", "prefill", "decode"), compared, to=out)
    for step in facts["growth"]:
        if step["variant"] == "model":
            text = f"a prompt token takes {step['time_per_token']:.2f} times as long"
            note(f"{step['to']:,} tokens against {step['from']:,}: {text}")
    if any(result.variant == "all-full" for result in report.speed):
        note("every layer Full: the missing indexers are copies of the one in use; what they choose means nothing")


def _show_memory(report: BenchReport) -> None:
    rows = []
    for result in report.memory:
        plan, run, planned, share = result.plan, result.run, result.planned_peak, result.of_plan
        if run is None or planned is None or share is None:
            note(f"{result.length:,} tokens: {result.failure}")
            continue
        parts = (run.program_bytes, plan.weights, plan.cache, plan.workspace + plan.compiled, planned, run.peak_bytes)
        near = f"{share - 1:+.1%}" + ("" if result.as_planned else " (!)")
        rows.append((f"{result.length:,}", *map(size, parts), near, f"{run.prefill_s:.2f} s"))
    columns = ("tokens", "program", "weights", "cache", "workspace", "planned peak", "peak", "off", "prefill")
    print_table("Memory, a process for each length", columns, rows, to=console())


def _shares(bound: Bound) -> tuple[str, str, str]:
    return f"{bound.matrix_share:.1%}", f"{bound.read_share:.1%}", _WHY[bound.by]


def _rate(spread: Spread, unit: float, name: str) -> str:
    return _with_range(spread, unit, name, 1)


def _time(spread: Spread) -> str:
    """Seconds, milliseconds or microseconds, whichever the median has digits in."""
    unit, name = next((u, n) for u, n in ((1, "s"), (1e-3, "ms"), (1e-6, "us")) if spread.median >= u or u == 1e-6)
    return _with_range(spread, unit, name, 2)


def _with_range(spread: Spread, unit: float, name: str, digits: int) -> str:
    median, low, high = (f"{value / unit:,.{digits}f}" for value in (spread.median, spread.low, spread.high))
    return f"{median} {name}" + (f" ({low} to {high})" if spread.runs > 1 else "")
