"""Layer by layer: what another program's layers make of what enters them, each compared by itself.

Every part of a layer starts from the other program's own states, so that a mistake in one is not seen in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from indexshare.verify.forward import PlainForward
from indexshare.verify.observation import LayerStates

_SMALLEST = 1e-2  # of a state: what a part adds counts as at least so large, or rounding of the sum would show


@dataclass(frozen=True, kw_only=True)
class LayerDifference:
    """How one layer differs when it is given the other program's states; 0 is the same.

    Attributes:
        layer: its number.
        choice: of tokens. Full layers: how far below the last right one the worst chosen one scores, as a part of the
            query's largest score, and 1 where another number of tokens was chosen. Shared layers: 1 unless the
            choice is that of their Full layer.
        attention: of what the attention adds, with the same tokens chosen; relative root mean square.
        feed_forward: likewise of the second half.
    """

    layer: int
    choice: float
    attention: float
    feed_forward: float

    def apart(self, tolerance: float) -> list[str]:
        """Names of the parts that differ by more than rounding."""
        parts = {"choice of tokens": self.choice, "attention": self.attention, "feed-forward": self.feed_forward}
        return [name for name, difference in parts.items() if not difference <= tolerance]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return vars(self)


def compare_layers(forward: PlainForward, layers: Sequence[LayerStates]) -> list[LayerDifference]:
    """Each layer of another program against the formulas."""
    return [_compare(forward, layers, number) for number in range(len(layers))]


def _compare(forward: PlainForward, layers: Sequence[LayerStates], number: int) -> LayerDifference:
    theirs, plan = layers[number], forward.config.share_plan
    if plan.is_full(number):
        choice = regret(forward.index_scores(number, theirs.before), theirs.chosen, forward.config.index_topk)
    else:
        choice = 0.0 if torch.equal(theirs.chosen, layers[plan.source(number)].chosen) else 1.0
    attended = forward.layer(number, theirs.before, theirs.chosen).between
    fed = forward.feed_forward(number, theirs.between)
    return LayerDifference(
        layer=number,
        choice=choice,
        attention=_relative(theirs.between, attended, theirs.before),
        feed_forward=_relative(theirs.after, fed, theirs.between),
    )


def regret(scores: Tensor, chosen: Tensor, topk: int) -> float:
    """See `LayerDifference.choice`; scores and choice `[S, S]`. Equal scores may be chosen either way."""
    causal = torch.ones_like(chosen).tril()
    if not torch.equal((chosen & causal).sum(-1), causal.sum(-1).clamp_max(topk)):
        return 1.0
    scores, chosen, causal = scores[topk:], chosen[topk:], causal[topk:]
    if not len(scores):
        return 0.0
    last = scores.masked_fill(~causal, -torch.inf).topk(topk).values[:, -1]
    worst = scores.masked_fill(~chosen, torch.inf).amin(-1)
    largest = scores.masked_fill(~causal, 0.0).abs().amax(-1).clamp_min(1e-30)
    return min(1.0, float(((last - worst) / largest).clamp_min(0.0).max()))


def _relative(theirs: Tensor, ours: Tensor, before: Tensor) -> float:
    added, least = _rms(ours - before), _SMALLEST * _rms(before)
    return _rms(theirs - ours) / max(added, least, 1e-30)


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())
