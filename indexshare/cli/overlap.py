"""`indexshare overlap`: how much layers' selections agree, what sharing would keep, and one choice explained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from indexshare.cli.measuring import MeasuringBar
from indexshare.cli.output import console, note, print_json, print_pairs, print_table, printable
from indexshare.cli.suite_options import TextOptions, parse_lengths

if TYPE_CHECKING:
    from torch import Tensor

    from indexshare.eval.subject import Subject
    from indexshare.sharing.explain import Explanation, GroupChoice
    from indexshare.sharing.overlap import OverlapReport
    from indexshare.sharing.state_file import StateFile

_WINDOWS = 8
_TOP = 8  # tokens of a group shown in the terminal
_STRIP = 64  # characters that stand for the context
_SHADES = " ▁▂▃▄▅▆▇█"
_MATRIX = 20  # columns of percentages that a terminal shows


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class WindowOptions:
    """Windows of the text, and how the model runs over them.

    Parameters
    ----------
    windows
        Windows of each length; 8, or as many as the text has, unless given.
    seed
        Of the order of the files.
    dtype
        float32 or bfloat16; unless given, float32 on a CPU, else as stored.
    device
        Where to run: cpu, cuda, cuda:1, ...
    """

    windows: int | None = None
    seed: int = 0
    dtype: str | None = None
    device: str = "cpu"

    def load(self, model: str, text: TextOptions) -> Subject:
        """The model and its text; ValueError for a device that is not here."""
        from indexshare.cli.options import check_device
        from indexshare.eval.subject import load_subject

        check_device(self.device)
        return load_subject(
            model, text=text.text, patterns=text.pattern, packages=text.unseen, dtype=self.dtype, device=self.device
        )

    def take(self, subject: Subject, length: int, most: int = _WINDOWS) -> Tensor:
        """The windows of one length."""
        from indexshare.sharing.windows import take_windows

        return take_windows(
            subject.tokenizer, subject.held_out, length=length, most=most, wanted=self.windows, seed=self.seed
        )


def overlap(
    model: str,
    /,
    *,
    lengths: str | None = None,
    queries: int = 64,
    explain: int | None = None,
    text: TextOptions | None = None,
    options: WindowOptions | None = None,
    state: Path | None = None,
    plot: Path | None = None,
    html: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Compare what a model's layers choose: overlap of selections, attention that shared selections keep, indexers.

    Parameters
    ----------
    model
        A shipped model or a model directory; `DIRECTORY@FFFSSS...` is a model under another plan of sharing.
    lengths
        Tokens of a window, separated by commas (2K,8K): 4K, or what the model reads, unless given.
    queries
        Queries looked at in each window, evenly spread; their number is in the report.
    explain
        Explain the choices for the token at this position of the first window, and measure nothing unless --lengths.
    state
        Keep what is measured in this file: the same command goes on after an interruption.
    plot
        Draw the matrices into this file (png, svg or pdf); needs matplotlib.
    html
        Write a page with the numbers under the pointer, a slider over positions, and the explanation.
    json
        Print one JSON object instead of tables.
    """
    from indexshare.sharing.page import explanation_facts, report_facts

    text, options = text or TextOptions(), options or WindowOptions()
    _check_files(plot, html)
    if plot is not None and explain is not None and lengths is None:
        raise ValueError("--plot draws what is measured; give --lengths beside --explain, or --html for its page")
    sizes = parse_lengths(lengths)
    subject = options.load(model, text)
    if sizes is None:
        sizes = () if explain is not None else (min(4096, subject.context),)
    explained = None if explain is None else _explain(subject, options, explain, sizes)
    reports = _measure(subject, options, sizes, queries, state, text) if sizes else []
    facts = [report_facts(report) for report in reports]
    told = None if explained is None else explanation_facts(explained, subject.tokenizer)
    _draw(model, reports, facts, told, subject, plot, html)
    if json:
        print_json({"model": model, "reports": facts} | ({} if told is None else {"explain": told}))
        return
    for report in reports:
        _show(model, report)
    if explained is not None:
        _show_explanation(explained, subject)


def _check_files(plot: Path | None, html: Path | None) -> None:
    from indexshare.eval.plots import check_picture
    from indexshare.sharing.page import check_page

    if plot is not None:
        check_picture(plot)
    if html is not None:
        check_page(html)


def _explain(subject: Subject, options: WindowOptions, position: int, sizes: tuple[int, ...]) -> Explanation:
    """The choices at a position of the first window: the longest one of `sizes`, or one that ends there."""
    from indexshare.sharing.explain import check_position, explain
    from indexshare.sharing.windows import take_windows

    length = max(sizes, default=min(max(position + 1, 1), subject.context))
    check_position(subject.model.config, position, length)
    window = take_windows(
        subject.tokenizer, subject.held_out, length=length, most=1, wanted=1, seed=options.seed
    )[0]  # fmt: skip
    return explain(subject.model, window, position)


def _measure(
    subject: Subject, options: WindowOptions, sizes: tuple[int, ...], queries: int, file: Path | None, text: TextOptions
) -> list[OverlapReport]:
    from indexshare.sharing.windows import check_window

    for length in sizes:
        check_window(subject.model.config, length)
    taken = [options.take(subject, length) for length in sizes]
    kept = _state(subject, options, taken, queries, file)
    try:
        with MeasuringBar() as bar:
            return [_one_length(subject, windows, queries, options.seed, kept, bar) for windows in taken]
    except KeyboardInterrupt:
        note(stopped(file))
        raise


def _one_length(
    subject: Subject, windows: Tensor, queries: int, seed: int, kept: StateFile, bar: MeasuringBar
) -> OverlapReport:
    from indexshare.sharing.overlap import measure_overlap

    with bar.stage(f"overlap at {windows.shape[1]:,} tokens") as progress:
        return measure_overlap(subject.model, windows, queries=queries, seed=seed, state=kept, progress=progress)


def stopped(file: Path | None) -> str:
    """What to say after Ctrl+C of work whose state is kept in `file`, if in any."""
    if file is None:
        return "stopped; with --state FILE the same command would go on from here"
    return f"stopped; what was measured is kept in {file}, and the same command goes on from there"


def _state(subject: Subject, options: WindowOptions, taken: list[Tensor], queries: int, file: Path | None) -> StateFile:
    """What an earlier start has measured of the same request."""
    import hashlib

    from indexshare.sharing.state_file import StateFile

    digest = hashlib.sha256(b"".join(windows.numpy().tobytes() for windows in taken)).hexdigest()
    request = {
        "model": subject.name, "pattern": subject.model.plan.pattern, "dtype": str(subject.dtype),
        "windows": [list(windows.shape) for windows in taken], "queries": queries, "seed": options.seed, "text": digest,
    }  # fmt: skip
    return StateFile(file, request)


def _draw(
    model: str, reports: list[OverlapReport], facts: list[dict[str, Any]], told: dict[str, Any] | None,
    subject: Subject, plot: Path | None, html: Path | None,
) -> None:  # fmt: skip
    from functools import partial

    from indexshare.eval.plots import draw
    from indexshare.sharing.page import write_page
    from indexshare.sharing.pictures import draw_overlap, draw_recall

    if plot is not None:
        rows = [[partial(draw_overlap, report=each), partial(draw_recall, report=each)] for each in reports]
        draw(rows, plot, f"{model}, {subject.model.plan.pattern}")
        note(f"written: {plot}")
    if html is not None:
        write_page(html, model=model, plan=subject.model.plan, reports=facts, explained=told)
        note(f"written: {html}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _show(model: str, report: OverlapReport) -> None:
    """The tables of one length."""
    out, plan = console(), report.plan
    adjacent = report.adjacent()
    pairs = [
        ("pattern", plan.pattern),
        ("queries", f"{report.queries:,} of {report.possible:,}, in {report.windows} windows"),
        ("overlap of neighbours", f"{_percent(adjacent)} of {report.topk} tokens; random {_percent(report.random[0])}"),
    ]
    print_pairs(f"{model} at {report.length:,} tokens", pairs, to=out)
    rows = [
        (
            str(layer), plan.pattern[layer], str(plan.source(layer)), _percent(report.own(layer)),
            _percent(report.inherited(layer)), _percent(report.best[0][layer]), _percent(report.recent[0][layer]),
        )
        for layer in range(plan.num_layers)
    ]  # fmt: skip
    print()
    columns = ("layer", "kind", "chosen by", "own choice", "choice before", "best tokens", "most recent")
    print_table("attention kept by", columns, rows, to=out)
    print()
    _show_indexers(report)
    if len(plan.full_layers) <= _MATRIX:
        print()
        cells = [
            [str(layer), *(f"{100 * value:.0f}" for value in row)]
            for layer, row in zip(plan.full_layers, report.overlap[0], strict=True)
        ]
        print_table("overlap of selections, %", ("layer", *map(str, plan.full_layers)), cells, to=out)


def _show_indexers(report: OverlapReport) -> None:
    rows = [
        (
            str(layer), _percent(h.ties), f"{h.margin:.4f}", _percent(h.zeros), f"{h.entropy:.2f}",
            f"{h.attention_entropy:.2f}", f"{h.kl:.3f}", " ".join(f"{100 * s:.0f}" for s in h.share),
            ",".join(map(str, h.dead_heads)) or "-",
        )
        for layer, h in zip(report.plan.full_layers, report.health, strict=True)
    ]  # fmt: skip
    columns = ("layer", "ties", "margin", "zeros", "entropy", "of attention", "KL", "heads, %", "dead")
    print_table("indexers", columns, rows, to=console(), text=(0, 7, 8))


def _show_explanation(explained: Explanation, subject: Subject) -> None:
    """Each group: where its tokens lie, and the ones with most attention."""
    out, tokenizer = console(), subject.tokenizer
    words = tokenizer.decode(explained.tokens[-24:])
    print_pairs(
        f"token {explained.position:,} of the text", [("the text ends", repr(printable(words)))], to=out
    )  # fmt: skip
    for group in explained.groups:
        print()
        kept = ", ".join(f"{each.layer}: {_percent(each.held)}" for each in group.layers)
        out.print(
            f"layer {group.full} chose {len(group.chosen)} of {explained.position + 1:,} tokens; kept by layer {kept}"
        )
        out.print(f"  |{strip(group, explained.position + 1)}|")
        rows = []
        for place in group.top(_TOP):
            at = group.chosen[place]
            around = tokenizer.decode(explained.tokens[max(0, at - 4) : at + 3])
            paid = [f"{100 * each.attention[place]:.1f}" for each in group.layers]
            rows.append(
                (f"{at:,}", repr(printable(tokenizer.decode([explained.tokens[at]]))), repr(printable(around)), *paid)
            )
        columns = ("position", "token", "in", *(f"layer {each.layer}, %" for each in group.layers))
        print_table("", columns, rows, to=out, text=(1, 2))


def strip(group: GroupChoice, length: int) -> str:
    """Where in the context the chosen tokens lie, as bars: from nothing chosen of a part to all of it."""
    counts = [0] * min(_STRIP, length)
    for position in group.chosen:
        counts[position * len(counts) // length] += 1
    full = length / len(counts)
    return "".join(_SHADES[min(8, -(-8 * number // max(1, round(full))))] for number in counts)
