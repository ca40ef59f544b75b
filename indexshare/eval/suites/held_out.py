"""The suite `held-out`: bits per byte of unseen files; with lengths or an ancestor also the prices of sparse attention.

The prices are of sparsity and of sharing, each by itself (`eval/prices.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from indexshare.eval import plots
from indexshare.eval.bootstrap import ratio
from indexshare.eval.forward import check_length
from indexshare.eval.held_out import (
    DEFAULT_STRETCH,
    HeldOutReport,
    check_stretches,
    evaluate_held_out,
    some_documents,
    stretch,
)
from indexshare.eval.prices import (
    DEFAULT_TOKENS,
    PriceReport,
    check_selects,
    evaluate_prices,
    load_every_layer_full,
)
from indexshare.eval.subject import Subject
from indexshare.eval.suites.base import (
    Comparison,
    Pairs,
    Panel,
    Stage,
    Suite,
    SuiteSettings,
    Table,
    between,
    figure,
)
from indexshare.text.files import plural


@dataclass(frozen=True, kw_only=True)
class HeldOutFigures:
    """Both reports of the suite, and the name of the model."""

    model: str
    held_out: HeldOutReport
    prices: PriceReport | None


class HeldOutSuite(Suite[HeldOutFigures]):
    """Bits per byte against `xz`, bits by position, and the prices at the given lengths."""

    name = "held-out"
    reads = frozenset({"lengths", "ancestor", "tokens", "files", "seed", "max_tokens"})

    def check(self, subject: Subject, settings: SuiteSettings) -> None:
        """Lengths that the model reads, and at which it selects; stretches that hold more than any file's own line."""
        check_stretches(subject.model, subject.tokenizer, subject.held_out, stretch(subject.model, settings.max_tokens))
        for length in settings.lengths or ():
            check_length(subject.model, length)
            check_selects(subject.model, length)

    def cut_short(self, subject: Subject, settings: SuiteSettings) -> str:
        """The stretches of files."""
        longest = stretch(subject.model, settings.max_tokens)
        if settings.max_tokens is not None or longest == DEFAULT_STRETCH:
            return ""
        return f"files are scored in stretches of {longest:,} tokens, which is the model's context"

    def run(self, subject: Subject, settings: SuiteSettings, stage: Stage) -> HeldOutFigures:
        """Prices first: they are the first to find the text too short, or the ancestor no match."""
        prices = None
        if settings.lengths is not None or settings.ancestor is not None:
            with stage("prices") as progress:
                other = load_every_layer_full(
                    subject.name, subject.model, subject.tokenizer, settings.ancestor,
                    dtype=subject.dtype, device=subject.device,
                )  # fmt: skip
                prices = evaluate_prices(
                    subject.model, subject.tokenizer, subject.held_out,
                    lengths=settings.lengths, every_layer_full=other,
                    max_tokens=DEFAULT_TOKENS if settings.tokens is None else settings.tokens, progress=progress,
                )  # fmt: skip
        with stage(self.name, "files") as progress:
            documents = some_documents(subject.held_out, settings.files, settings.seed)
            longest = stretch(subject.model, settings.max_tokens)
            report = evaluate_held_out(
                subject.model, subject.tokenizer, documents, max_tokens=longest, progress=progress
            )
        return HeldOutFigures(model=subject.name, held_out=report, prices=prices)

    def tables(self, report: HeldOutFigures) -> Sequence[Table | Pairs]:
        """Bits per byte, bits by position where the text fills a window, and prices by length."""
        bits = report.held_out
        parts: list[Table | Pairs] = [_bits_table(report.model, bits)]
        if bits.position_bits:
            parts.append(_position_table(bits))
        if report.prices is not None:
            parts.append(_price_table(report.prices))
        return parts

    def facts(self, report: HeldOutFigures) -> dict[str, Any]:
        """The held-out report's own keys at the top, the prices under their name."""
        bits = report.held_out
        comparisons = {"below_xz": bits.below_xz, "price_of_sparsity": bits.price_of_sparsity}
        prices = {} if report.prices is None else {"prices": asdict(report.prices)}
        plain = {name: value for name, value in asdict(bits).items() if name != "by_file"}
        return plain | comparisons | prices

    def pictures(self, report: HeldOutFigures) -> Sequence[Sequence[Panel]]:
        """Bits by position; bits and prices by length."""
        rows: list[list[Panel]] = []
        if report.held_out.windows:
            rows.append([lambda axes: _draw_positions(axes, report.held_out)])
        if (prices := report.prices) is not None:
            rows.append([lambda axes: _draw_bits(axes, prices), lambda axes: _draw_prices(axes, prices)])
        return rows

    def compare(self, names: Sequence[str], reports: Sequence[HeldOutFigures]) -> Comparison:
        """Bits of the same files, each model against the first one; nothing where the files differ."""
        first, rows, facts = reports[0].held_out.by_file, list[list[str]](), list[dict[str, Any]]()
        for name, report in zip(names[1:], reports[1:], strict=True):
            own = report.held_out.by_file
            if [file[:2] for file in own] != [file[:2] for file in first]:
                continue
            more = ratio([bits for *_, bits in own], [bits for *_, bits in first]).changed(1, -1)
            rows.append([f"{name} against {names[0]}", figure(more, "+.2%")])
            facts.append({"model": name, "less": names[0], "more_bits": more.value, "interval": more.interval})
        title = f"more bits of the same {plural(len(first), 'file')}"
        return Comparison([Table(title, ("", "with 95 % interval over files"), rows)] if rows else (), facts)


def _bits_table(model: str, report: HeldOutReport) -> Pairs:
    inside = {"opening": ", ", "closing": ""}
    price = f"{report.price_of_sparsity:+.2%}{between(report.price_interval, '+.2%', **inside)}"
    below = f"{report.below_xz:.1%} below{between(report.below_xz_interval, '.1%', **inside)}"
    return Pairs(
        f"{model} on {plural(report.files, 'file')}, {report.num_bytes:,} bytes (intervals: 95 %, over files)",
        [
            ("bits per byte", f"{report.sparse:.4f}{between(report.sparse_interval, '.4f')}"),
            ("  full attention", f"{report.full:.4f} (the selection costs {price})"),
            ("  xz -9e", f"{report.xz:.4f} (the model is {below})"),
        ],
    )


def _position_table(report: HeldOutReport) -> Table:
    edges = report.position_edges
    rows = [
        (f"{low:,}-{high:,}", f"{bits:.4f}")
        for low, high, bits in zip(edges, edges[1:], report.position_bits, strict=False)
    ]
    return Table(f"bits per token by position, {plural(report.windows, 'window')}", ("position", "bits"), rows)


def _price_table(report: PriceReport) -> Table:
    rows = [
        (
            f"{row.length:,}",
            f"{row.selection.value:.4f}",
            f"{row.full.value:.4f}",
            figure(row.price_of_sparsity, "+.2%"),
            "-" if row.every_layer_full is None else f"{row.every_layer_full.value:.4f}",
            "-" if row.price_of_sharing is None else figure(row.price_of_sharing, "+.2%"),
        )
        for row in report.rows
    ]
    return Table(
        f"bits per byte by context, the same {report.tokens:,} tokens of {plural(report.files, 'file')}",
        ("context", "selection", "full", "price of sparsity", "every layer Full", "price of sharing"),
        rows,
    )


def _draw_positions(axes: Any, report: HeldOutReport) -> None:
    edges = report.position_edges
    axes.stairs(report.position_bits, edges, baseline=None)
    axes.set_xscale("log", base=2)
    axes.set_xlim(max(1, edges[1] // 2), edges[-1])
    axes.set(xlabel="position", ylabel="bits per token", title=f"by position, {plural(report.windows, 'window')}")
    axes.grid(alpha=0.3)


def _draw_bits(axes: Any, report: PriceReport) -> None:
    lengths = [row.length for row in report.rows]
    # The intervals of bits are those of the files, far wider than what the lines differ by: the prices have their own.
    plots.line(axes, lengths, [row.selection for row in report.rows], "selection", bars=False)
    plots.line(axes, lengths, [row.full for row in report.rows], "full attention", bars=False)
    plots.line(axes, lengths, [row.every_layer_full for row in report.rows], "every layer Full", bars=False)
    axes.set(ylabel="bits per byte", title=f"held-out text, {report.tokens:,} tokens")
    plots.lengths_axis(axes, lengths)


def _draw_prices(axes: Any, report: PriceReport) -> None:
    lengths = [row.length for row in report.rows]
    sharing = [row.price_of_sharing and row.price_of_sharing.changed(100, 0) for row in report.rows]
    plots.line(axes, lengths, [row.price_of_sparsity.changed(100, 0) for row in report.rows], "of sparsity", bars=True)
    plots.line(axes, lengths, sharing, "of sharing", bars=True)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(ylabel="more bits (%)", title="price, with 95 % intervals")
    plots.lengths_axis(axes, lengths)
