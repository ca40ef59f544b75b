"""Pictures of evaluation reports, one row of panels per report. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from indexshare.eval.bootstrap import Estimate
from indexshare.text.files import check_can_write, replacing

_SUFFIXES = (".png", ".svg", ".pdf")
_BEGIN = (b"\x89PNG", b"<?xml", b"<svg", b"%PDF")  # pictures, which may be replaced
_WIDTH, _ROW_HEIGHT = 10.0, 3.2  # inches


def check_picture(file: Path) -> None:
    """Refuse (ValueError) a picture that could not be written, before the long work that it is to show."""
    if file.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"the picture is {file.name!r}; expected a name that ends in one of {', '.join(_SUFFIXES)}")
    check_can_write(file, replaces=_BEGIN)
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("a picture needs matplotlib; install it with: pip install 'indexshare[plots]'") from None


def draw(
    rows: Sequence[Sequence[Callable[[Any], None]]], file: Path, title: str, row_titles: Sequence[str] = ()
) -> None:
    """Write one picture of rows of panels; a panel is a function that draws on the axes it is given.

    Args:
        rows: the panels.
        file: where to.
        title: of the picture.
        row_titles: one for each row, where rows are of different models.

    Raises:
        ValueError: as `check_picture`, or there is nothing to draw.
    """
    check_picture(file)
    from matplotlib.figure import Figure

    if not rows:
        raise ValueError("there is nothing to draw: the text is too short for a window by position")
    figure = Figure(figsize=(_WIDTH, _ROW_HEIGHT * len(rows)), layout="constrained")
    figure.suptitle(title)
    titles = list(row_titles) or [""] * len(rows)
    for part, panels, above in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, titles, strict=True):
        if above:
            part.suptitle(above, fontsize="medium")
        for axes, panel in zip(part.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            panel(axes)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=110)


def line(
    axes: Any, lengths: Sequence[int], every: Sequence[Estimate | None], label: str, *, bars: bool, **style: Any
) -> None:
    """A line through the figures that there are, in the `style` of matplotlib."""
    there = [(length, figure) for length, figure in zip(lengths, every, strict=True) if figure is not None]
    if there:
        figures = [figure for _, figure in there]
        style |= {"yerr": error_bars(figures), "capsize": 3} if bars else {}
        axes.errorbar(*zip(*((n, f.value) for n, f in there), strict=True), marker="o", ms=3, label=label, **style)


def error_bars(figures: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of the error bars below and above; none where there is no interval."""
    ends = [(figure.value, figure.interval or (figure.value, figure.value)) for figure in figures]
    # Where an interval ends at its figure, rounding may leave them in the other order.
    return [[max(0.0, value - low) for value, (low, _) in ends], [max(0.0, high - value) for value, (_, high) in ends]]


def lengths_axis(axes: Any, lengths: Sequence[int]) -> None:
    """A logarithmic axis of context lengths, a grid and a legend."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.set_xlabel("context (tokens)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def heatmap(
    axes: Any,
    values: Sequence[Sequence[float | None]],
    labels: Sequence[Sequence[str]],
    *,
    rows: Sequence[str],
    lengths: Sequence[int],
    signed: bool = False,
) -> None:
    """Figures from 0 to 1 (from -1 to 1 if `signed`) by row and length, each with its label; None is left white."""
    shown = [[float("nan") if value is None else value for value in row] for row in values]
    scale = {"vmin": -1, "vmax": 1, "cmap": "RdBu"} if signed else {"vmin": 0, "vmax": 1, "cmap": "viridis"}
    image = axes.imshow(shown, aspect="auto", **scale)
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            dark = value is not None and (abs(value) > 0.6 if signed else value < 0.6)
            axes.text(x, y, labels[y][x], ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xlabel("length (tokens)")
    axes.figure.colorbar(image, ax=axes, label="difference" if signed else "score")
