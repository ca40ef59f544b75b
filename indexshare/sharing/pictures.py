"""Overlap as a picture: heatmaps with the pattern drawn on them. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from indexshare.sharing.overlap import OverlapReport

_LABELLED = 20  # layers up to which every cell has its number


def draw_overlap(axes: Any, report: OverlapReport) -> None:
    """Common tokens of any two Full layers' selections."""
    full = report.plan.full_layers
    _heatmap(axes, report.overlap[0], full, full, f"overlap of selections, {report.length:,} tokens")


def draw_recall(axes: Any, report: OverlapReport) -> None:
    """Attention of each layer that each selection holds; the cells of the pattern have a frame."""
    from matplotlib.patches import Rectangle

    full, plan = report.plan.full_layers, report.plan
    values = [[float("nan") if value is None else value for value in row] for row in report.recall[0]]
    _heatmap(axes, values, range(plan.num_layers), full, f"attention kept, {report.length:,} tokens")
    for layer in range(plan.num_layers):
        place = (full.index(plan.source(layer)) - 0.5, layer - 0.5)
        axes.add_patch(Rectangle(place, 1, 1, fill=False, edgecolor="tab:orange", linewidth=1.5))
    axes.set_yticks(range(plan.num_layers), [f"{n} {letter}" for n, letter in enumerate(plan.pattern)], fontsize=7)


def _heatmap(
    axes: Any, values: Sequence[Sequence[float]], rows: Sequence[int], columns: Sequence[int], title: str
) -> None:
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    if len(rows) <= _LABELLED:
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                if value == value:
                    shade = "white" if value < 0.6 else "black"
                    axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color=shade)
    axes.set_xticks(range(len(columns)), columns, fontsize=7)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_xlabel("selection of layer")
    axes.set_ylabel("layer")
    axes.set_title(title, fontsize="medium")
    axes.figure.colorbar(image, ax=axes)
