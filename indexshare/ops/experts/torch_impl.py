"""Routing and grouped expert products in plain torch; see the reference for contracts and shape letters."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from indexshare.ops.experts.grouped import grouped_experts


def route(
    scores: Tensor, bias: Tensor, *, topk: int, groups: int, topk_groups: int, normalise: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Expert ids `[N, k]` ascending and weights `[N, k]`; stable sorts give ties to the lower id. See the reference."""
    with torch.no_grad():
        biased = scores + bias
        if groups > 1:
            by_group = biased.view(biased.shape[0], groups, -1)
            group_score = by_group.topk(2, dim=-1).values.sum(-1)
            keep = group_score.sort(dim=-1, descending=True, stable=True).indices[:, :topk_groups]
            eligible = torch.zeros_like(group_score, dtype=torch.bool).scatter_(1, keep, True)
            biased = by_group.masked_fill(~eligible[..., None], -torch.inf).flatten(1)
        ids = biased.sort(dim=-1, descending=True, stable=True).indices[:, :topk].sort(dim=-1).values
    weights = scores.gather(1, ids)
    if normalise:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return ids, weights * scale


def group(ids: Tensor, num_experts: int, grain: int) -> tuple[list[int], Tensor, Tensor]:
    """Places for the pairs of `ids` `[N, k]` in order of expert, each expert's stretch a multiple of `grain`.

    Returns:
        stops: where each expert's stretch ends; tokens int64 `[P]` at the places, 0 in the padding; place int64
        `[N * k]` of each pair.
    """
    flat = ids.flatten()
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=num_experts)
    sizes = (counts + grain - 1) // grain * grain
    shift = (sizes - counts).cumsum(0) - (sizes - counts)  # padding before each expert
    places = torch.arange(flat.numel(), device=ids.device) + shift[flat[order]]
    stops = list(itertools.accumulate(sizes.tolist()))
    tokens = flat.new_zeros(stops[-1])
    tokens[places] = order // ids.shape[1]
    inverse = torch.empty_like(order)
    inverse[order] = places
    return stops, tokens, inverse


def experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """See the reference; differentiable in x, weights, gate_up and down."""
    return grouped_experts(x, ids, weights, gate_up, down, group=group, activation=_swiglu)


def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up
