"""A search as a picture: loss by the number of layers that share. Needs matplotlib (the extra `plots`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from indexshare.sharing.search import Step


def draw_losses(axes: Any, steps: Sequence[Step], others: Sequence[tuple[str, Step]] = ()) -> None:
    """The plans of a search, and single ones to compare with by their names."""
    shared = [len(step.plan.shared_layers) for step in steps]
    axes.plot(shared, [step.loss for step in steps], marker="o", ms=3, label="search")
    for name, step in others:
        axes.plot([len(step.plan.shared_layers)], [step.loss], marker="s", ms=5, linestyle="none", label=name)
    axes.set(xlabel="layers that share", ylabel="loss (nats per token)", title="loss of the plans found")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def draw_candidates(axes: Any, steps: Sequence[Step]) -> None:
    """Loss of every candidate of every step, by the layer that it changes; white where there was none."""
    layers = steps[0].plan.num_layers
    rows = []
    for before, step in pairwise(steps):
        row = [float("nan")] * layers
        for each in step.standings:
            moved = [n for n in range(layers) if each.pattern[n] != before.plan.pattern[n]]
            if len(moved) == 1:
                row[moved[0]] = each.loss - before.loss
        rows.append(row)
    image = axes.imshow(rows or [[0.0] * layers], aspect="auto", cmap="viridis")
    axes.set(xlabel="layer", ylabel="step", title="what sharing each layer would have cost")
    axes.figure.colorbar(image, ax=axes, label="nats per token")
