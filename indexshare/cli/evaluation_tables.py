"""Evaluation reports as tables for people, and as plain values for `--json`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from indexshare.cli.output import console, print_pairs, print_table

if TYPE_CHECKING:
    from indexshare.eval.bootstrap import Estimate, Interval
    from indexshare.eval.draft import DraftReport
    from indexshare.eval.held_out import HeldOutReport
    from indexshare.eval.prices import PriceReport
    from indexshare.eval.repository import RepositoryReport
    from indexshare.eval.retrieval import RetrievalReport


def between(interval: Interval | None, form: str, *, opening: str = " (", closing: str = ")") -> str:
    """The interval as people read it, ` (1.19 to 1.23)`; empty where there is none."""
    return "" if interval is None else f"{opening}{interval[0]:{form}} to {interval[1]:{form}}{closing}"


def figure(estimate: Estimate, form: str) -> str:
    """A figure with its interval: `1.21 (1.19 to 1.23)`."""
    return f"{estimate.value:{form}}{between(estimate.interval, form)}"


def held_out_facts(report: HeldOutReport) -> dict[str, Any]:
    """Plain values, with the two comparisons."""
    return asdict(report) | {"below_xz": report.below_xz, "price_of_sparsity": report.price_of_sparsity}


def show_held_out(model: str, report: HeldOutReport) -> None:
    """Bits per byte, and bits by position where the text fills a window."""
    out = console()
    inside = {"opening": ", ", "closing": ""}
    price = f"{report.price_of_sparsity:+.2%}{between(report.price_interval, '+.2%', **inside)}"
    below = f"{report.below_xz:.1%} below{between(report.below_xz_interval, '.1%', **inside)}"
    print_pairs(
        f"{model} on {report.files} files, {report.num_bytes:,} bytes (intervals: 95 %, over files)",
        [
            ("bits per byte", f"{report.sparse:.4f}{between(report.sparse_interval, '.4f')}"),
            ("  full attention", f"{report.full:.4f} (the selection costs {price})"),
            ("  xz -9e", f"{report.xz:.4f} (the model is {below})"),
        ],
        to=out,
    )
    edges = report.position_edges
    rows = [
        (f"{low:,}-{high:,}", f"{bits:.4f}")
        for low, high, bits in zip(edges, edges[1:], report.position_bits, strict=False)
    ]
    if rows:
        print_table(f"bits per token by position, {report.windows} windows", ("position", "bits"), rows, to=out)


def show_prices(report: PriceReport) -> None:
    """Bits per byte and the two prices by length."""
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
    print_table(
        f"bits per byte by context, the same {report.tokens:,} tokens of {report.files} files",
        ("context", "selection", "full", "price of sparsity", "every layer Full", "price of sharing"),
        rows,
        to=console(),
    )


def retrieval_facts(report: RetrievalReport) -> dict[str, Any]:
    """Plain values, with the accuracy by attention and length."""
    accuracy = {
        name: [
            {"length": length, **asdict(report.accuracy(name, length)), "worst_depth": report.worst_depth(name, length)}
            for length in report.lengths
        ]
        for name in report.attention
    }
    return asdict(report) | {"accuracy": accuracy}


def show_retrieval(report: RetrievalReport) -> None:
    """Exact answers by length for each kind of attention, then by depth for the first kind."""
    out = console()
    rows = [
        [f"{length:,}", *(figure(report.accuracy(name, length), ".0%") for name in report.attention)]
        for length in report.lengths
    ]
    print_table(f"{report.task}: exact answers by length", ("length", *report.attention), rows, to=out)
    first = report.attention[0]
    right = report.right[first]
    rows = [
        [f"{depth:.0%}", *(f"{right[i][d]}/{report.asked[i][d]}" for i in range(len(report.lengths)))]
        for d, depth in enumerate(report.depths)
    ]
    lengths = [f"{length:,}" for length in report.lengths]
    print_table(f"{report.task}, {first}: exact answers by depth and length", ("depth", *lengths), rows, to=out)


def show_repository(report: RepositoryReport) -> None:
    """Bits per byte with the package and without."""
    print_pairs(
        f"{report.files} held-out files with the rest of their package in {report.context:,} tokens",
        [
            ("bits per byte, alone", figure(report.alone, ".4f")),
            ("  with the package", figure(report.with_package, ".4f")),
            ("  saved", figure(report.gain, ".1%")),
            (
                "tokens scored",
                f"{report.tokens:,}, behind {report.mean_context_tokens:,.0f} of their package on average",
            ),
        ],
        to=console(),
    )


def show_draft(report: DraftReport) -> None:
    """Agreement of the draft layer with the trunk by step."""
    rows = [
        (f"{step}", figure(this, ".1%"), "-" if chain is None else figure(chain, ".1%"))
        for step, (this, chain) in enumerate(zip(report.agreement, report.accepted, strict=True), 1)
    ]
    title = (
        f"draft layer against trunk, {report.tokens:,} tokens of {report.files} files "
        f"(the trunk itself is right at {report.trunk_right.value:.1%})"
    )
    print_table(title, ("step", "agrees", "accepted up to this step"), rows, to=console())
