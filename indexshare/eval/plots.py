"""Pictures of evaluation reports, one row of panels per report. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from indexshare.eval.bootstrap import Estimate
from indexshare.eval.draft import DraftReport
from indexshare.eval.held_out import HeldOutReport
from indexshare.eval.prices import PriceReport
from indexshare.eval.repository import RepositoryReport
from indexshare.eval.retrieval import RetrievalReport

Report = HeldOutReport | PriceReport | RetrievalReport | RepositoryReport | DraftReport
_SUFFIXES = (".png", ".svg", ".pdf")
_WIDTH, _ROW_HEIGHT = 10.0, 3.2  # inches


def check_picture(file: Path) -> None:
    """Refuse (ValueError) a picture that could not be written, before the long work that it is to show."""
    if file.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"the picture is {file.name!r}; expected a name that ends in one of {', '.join(_SUFFIXES)}")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"the folder of the picture, {file.absolute().parent}, does not exist; make it first")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("a picture needs matplotlib; install it with: pip install 'indexshare[plots]'") from None


def draw(reports: Sequence[Report], file: Path, title: str) -> None:
    """Write one picture of all reports that have something to show.

    Raises:
        ValueError: as `check_picture`, or no report can be drawn.
    """
    check_picture(file)
    from matplotlib.figure import Figure

    rows = [row for report in reports if (row := _panels(report))]
    if not rows:
        raise ValueError("there is nothing to draw: the text is too short for a window by position")
    figure = Figure(figsize=(_WIDTH, _ROW_HEIGHT * len(rows)), layout="constrained")
    figure.suptitle(title)
    for part, panels in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        for axes, panel in zip(part.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            panel(axes)
    figure.savefig(file, dpi=110)


def _panels(report: Report) -> list[Callable[[Any], None]]:
    """What a report shows, from left to right."""
    if isinstance(report, HeldOutReport):
        return [lambda axes: _positions(axes, report)] if report.windows else []
    if isinstance(report, PriceReport):
        return [lambda axes: _bits(axes, report), lambda axes: _prices(axes, report)]
    if isinstance(report, RetrievalReport):
        return [lambda axes, name=name: _heatmap(axes, report, name) for name in report.attention]  # type: ignore[misc]
    if isinstance(report, RepositoryReport):
        return [lambda axes: _gains(axes, report)]
    return [lambda axes: _agreement(axes, report)]


def _positions(axes: Any, report: HeldOutReport) -> None:
    edges = report.position_edges
    axes.stairs(report.position_bits, edges, baseline=None)
    axes.set_xscale("log", base=2)
    axes.set_xlim(max(1, edges[1] // 2), edges[-1])
    axes.set(xlabel="position", ylabel="bits per token", title=f"by position, {report.windows} windows")
    axes.grid(alpha=0.3)


def _line(axes: Any, lengths: Sequence[int], every: Sequence[Estimate | None], label: str, *, bars: bool) -> None:
    """A line through the figures that there are."""
    there = [(length, figure) for length, figure in zip(lengths, every, strict=True) if figure is not None]
    if there:
        figures = [figure for _, figure in there]
        style = {"yerr": _bars(figures), "capsize": 3} if bars else {}
        axes.errorbar(*zip(*((n, f.value) for n, f in there), strict=True), marker="o", ms=3, label=label, **style)


def _bars(figures: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of the error bars below and above; none where there is no interval."""
    ends = [(figure.value, figure.interval or (figure.value, figure.value)) for figure in figures]
    return [[value - low for value, (low, _) in ends], [high - value for value, (_, high) in ends]]


def _lengths_axis(axes: Any, lengths: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xlabel("context (tokens)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _bits(axes: Any, report: PriceReport) -> None:
    lengths = [row.length for row in report.rows]
    # The intervals of bits are those of the files, far wider than what the lines differ by: the prices have their own.
    _line(axes, lengths, [row.selection for row in report.rows], "selection", bars=False)
    _line(axes, lengths, [row.full for row in report.rows], "full attention", bars=False)
    _line(axes, lengths, [row.every_layer_full for row in report.rows], "every layer Full", bars=False)
    axes.set(ylabel="bits per byte", title=f"held-out text, {report.tokens:,} tokens")
    _lengths_axis(axes, lengths)


def _prices(axes: Any, report: PriceReport) -> None:
    lengths = [row.length for row in report.rows]
    sharing = [row.price_of_sharing and row.price_of_sharing.changed(100, 0) for row in report.rows]
    _line(axes, lengths, [row.price_of_sparsity.changed(100, 0) for row in report.rows], "of sparsity", bars=True)
    _line(axes, lengths, sharing, "of sharing", bars=True)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set(ylabel="more bits (%)", title="price, with 95 % intervals")
    _lengths_axis(axes, lengths)


def _heatmap(axes: Any, report: RetrievalReport, attention: str) -> None:
    right, asked = report.right[attention], report.asked
    part = [[r / a for r, a in zip(*rows, strict=True)] for rows in zip(right, asked, strict=True)]
    columns = [list(depth) for depth in zip(*part, strict=True)]  # depth by length
    image = axes.imshow(columns, aspect="auto", vmin=0, vmax=1, cmap="viridis", origin="upper")
    axes.set_xticks(range(len(report.lengths)), [f"{length:,}" for length in report.lengths], rotation=30)
    axes.set_yticks(range(len(report.depths)), [f"{depth:.0%}" for depth in report.depths])
    axes.set(xlabel="length (tokens)", ylabel="depth", title=f"{report.task}: {attention}")
    axes.figure.colorbar(image, ax=axes, label="exact answers")


def _gains(axes: Any, report: RepositoryReport) -> None:
    gains = sorted(100 * (1 - row.with_package / row.alone) for row in report.by_file)
    axes.bar(range(len(gains)), gains, color=["tab:green" if gain > 0 else "tab:red" for gain in gains])
    gain = report.gain
    axes.axhline(100 * gain.value, color="black", linewidth=1)
    if gain.interval is not None:
        axes.axhspan(100 * gain.interval[0], 100 * gain.interval[1], color="grey", alpha=0.3)
    title = f"with the package in {report.context:,} tokens: {gain.value:.1%} saved"
    axes.set(xlabel="held-out files, sorted", xticks=[], ylabel="bits saved (%)", title=title)
    axes.grid(alpha=0.3, axis="y")


def _agreement(axes: Any, report: DraftReport) -> None:
    steps = range(1, len(report.agreement) + 1)
    for shift, name, every in ((-0.2, "this step", report.agreement), (0.2, "accepted up to it", report.accepted)):
        there = [(step + shift, figure) for step, figure in zip(steps, every, strict=True) if figure is not None]
        places, figures = [place for place, _ in there], [figure for _, figure in there]
        values = [figure.value for figure in figures]
        axes.bar(places, values, width=0.38, yerr=_bars(figures), capsize=3, label=name)
    axes.set_xticks(list(steps), [f"step {step}" for step in steps])
    axes.set(ylim=(0, 1), ylabel="draft agrees with trunk", title=f"draft layer, {report.tokens:,} held-out tokens")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, axis="y")
