"""The mean of a model's weights over the last updates of a stage.

Weights that go around a minimum lie, on average, nearer to it than any of them (Izmailov et al., "Averaging Weights
Leads to Wider Optima and Better Generalization", UAI 2018): what a lower rate at the end would bring, without more
updates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class WeightAverage:
    """A running mean in float32; empty until weights are added."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights after one more update; always of the same names and shapes."""
        self.count += 1
        for name, weight in weights.items():
            if name in self.mean:
                self.mean[name].lerp_(weight.float(), 1 / self.count)
            else:
                self.mean[name] = weight.detach().to(torch.float32, copy=True)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"count": self.count, "mean": self.mean}

    def restore(self, state: Mapping[str, Any], device: torch.device | str) -> None:
        """Go on from a state."""
        self.count = state["count"]
        self.mean = {name: mean.to(device) for name, mean in state["mean"].items()}
