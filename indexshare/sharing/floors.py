"""How well one indexer can serve its layers: its loss, and the floor below which no indexer gets.

One distribution q stands for the attention p_j of every layer j of a group. The mean over j of KL(p_j || q) is
KL(mean p || q) plus the generalised Jensen-Shannon divergence of the p_j, which does not depend on q: the floor.
Shape letters: S queries, T keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.cache.view import InFlightView
from indexshare.checkpoint.surgery import every_indexer
from indexshare.config.share_plan import SharePlan
from indexshare.model.glm import GlmMoeDsa
from indexshare.sharing.sampled import Seen, look_at, sample_queries
from indexshare.train.losses import token_losses


@dataclass(frozen=True, kw_only=True)
class GroupFloor:
    """One Full layer and the layers that it chooses for, in nats, means over queries.

    Attributes:
        full: the layer with the indexer; `layers` those served, itself first.
        kl: of each served layer's attention to the indexer.
        loss: their mean by the layers' weights, what distillation lowers.
        floor: the least that this mean can be.
    """

    full: int
    layers: tuple[int, ...]
    kl: tuple[float, ...]
    loss: float
    floor: float


class _Group:
    """Sums over queries of one group."""

    def __init__(self, layers: Sequence[int], weights: Sequence[float]) -> None:
        self.layers, self.weights = tuple(layers), [weight / sum(weights) for weight in weights]
        self.kl, self.floor = torch.zeros(len(layers), dtype=torch.float64), 0.0
        self._log_q, self._mean = torch.empty(0), torch.empty(0)

    def add(self, seen: Seen) -> None:
        """One served layer, in order."""
        p, number = seen.attention.double(), self.layers.index(seen.layer)
        if seen.index is not None:
            self._log_q, self._mean = _log_law(seen), torch.zeros_like(p)
        own = torch.xlogy(p, p).sum()
        self.kl[number] += float(own - (p * self._log_q).sum())
        self.floor += self.weights[number] * float(own)
        self._mean += self.weights[number] * p
        if number == len(self.layers) - 1:
            self.floor -= float(torch.xlogy(self._mean, self._mean).sum())

    def result(self, queries: int) -> GroupFloor:
        """Means."""
        kl = (self.kl / queries).tolist()
        loss = sum(weight * value for weight, value in zip(self.weights, kl, strict=True))
        return GroupFloor(
            full=self.layers[0], layers=self.layers, kl=tuple(kl), loss=loss, floor=max(0.0, self.floor / queries)
        )


def _log_law(seen: Seen) -> Tensor:
    """Logarithm of the softmax of the index scores, float64 `[S, T]`; zero beyond the query, where no attention is."""
    assert seen.index is not None
    dots = (seen.index.q @ seen.index.keys.t()).double().relu_()
    scores = (seen.index.weights.double()[:, None] @ dots)[:, 0]
    hidden = torch.arange(scores.shape[1], device=scores.device) > seen.queries[:, None]
    return scores.masked_fill_(hidden, -torch.inf).log_softmax(-1).masked_fill_(hidden, 0.0)


def group_floors(
    model: GlmMoeDsa, windows: Tensor, *, queries: int = 32, layer_weights: Sequence[float] = (), seed: int = 0
) -> list[GroupFloor]:
    """Loss and floor of every group over all causal positions, at some queries of each window.

    Args:
        model: in evaluation mode, under the plan in question.
        windows: int64 `[W, T]`.
        queries: looked at in each window, evenly spread.
        layer_weights: of the layers of the trunk, as the objective `Indexer` has them.
        seed: of the queries' places.
    """
    plan, length = model.plan, windows.shape[1]
    weights = list(layer_weights) or [1.0] * plan.num_layers
    groups = {
        full: _Group(plan.served_by(full), [weights[n] for n in plan.served_by(full)]) for full in plan.full_layers
    }
    shifts = torch.rand(len(windows), generator=torch.Generator().manual_seed(seed)).tolist()
    count = 0
    for window, shift in zip(windows, shifts, strict=True):
        places = sample_queries(length, model.config.index_topk, queries, shift)
        count += places.numel()
        look_at(model, window, places, lambda seen: groups[seen.source].add(seen))
    return [group.result(count) for group in groups.values()]


@torch.no_grad()
def window_loss(model: GlmMoeDsa, rows: Tensor) -> float:
    """Mean loss in nats per token over windows, int64 `[W, T + 1]`."""
    device, total = model.embed_tokens.weight.device, 0.0
    for row in rows.to(device):
        hidden = model.trunk(row[:-1], InFlightView([row.numel() - 1], device))
        total += float(token_losses(hidden, model.lm_head.weight, row[1:]).double().mean())
    return total / len(rows)


def under_plan(model: GlmMoeDsa, plan: SharePlan) -> GlmMoeDsa:
    """The model under another plan: idle indexers are left out, missing ones are those that served the layers so far.

    The weights are those of `model` itself, not copied.
    """
    with torch.device("meta"):
        other = GlmMoeDsa(model.config.replace(indexer_types=plan.types))
    weights, wanted = every_indexer(model.state_dict(), model.plan), other.state_dict().keys()
    other.load_state_dict({name: weights[name] for name in wanted}, assign=True)
    return other.eval()
