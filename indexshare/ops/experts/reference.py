"""Routing and expert sums as their formulas read: float32, one token and one expert at a time.

Source: DeepSeek-V3 (arXiv 2412.19437), section 2.1.2 (sigmoid scores, a correction bias in the choice only).
Shape letters: N tokens, X experts, k experts per token, H hidden, I expert width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from indexshare.ops.precision import wide


def route(
    scores: Tensor, bias: Tensor, *, topk: int, groups: int, topk_groups: int, normalise: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Choose experts for each token.

    Args:
        scores: float32 `[N, X]`, sigmoid of the router logits; bias: float32 `[X]`, added for the choice only.
        groups, topk_groups: experts are split into `groups` runs; the `topk_groups` runs with the largest sum of
            their two best biased scores stay eligible.
        normalise: divide the chosen scores by their sum; scale: then multiply (routed_scaling_factor).

    Returns:
        expert ids int64 `[N, k]` ascending, and weights `[N, k]` in the same order. Equal scores go to the lower id.
    """
    ids, weights = [], []
    for token in range(scores.shape[0]):
        biased = scores[token] + bias
        if groups > 1:
            by_group = biased.view(groups, -1)
            group_score = by_group.sort(descending=True).values[:, :2].sum(-1)
            keep = group_score.sort(descending=True, stable=True).indices[:topk_groups]
            eligible = torch.zeros(groups, dtype=torch.bool, device=scores.device)
            eligible[keep] = True
            biased = biased.masked_fill(~eligible.repeat_interleave(by_group.shape[1]), -torch.inf)
        chosen = biased.sort(descending=True, stable=True).indices[:topk].sort().values
        weight = scores[token, chosen]
        if normalise:
            weight = weight / (weight.sum() + 1e-20)
        ids.append(chosen)
        weights.append(weight * scale)
    return torch.stack(ids), torch.stack(weights)


def experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`sum_j weights[n, j] * down[e](swiglu(gate_up[e](x[n])))` with `e = ids[n, j]`.

    Shapes: x `[N, H]`, ids and weights `[N, k]`, gate_up `[X, 2I, H]` (gate rows first), down `[X, H, I]` -> `[N, H]`.
    """
    dtype = wide(x.dtype)
    out = torch.zeros(x.shape, dtype=dtype, device=x.device)
    for token in range(x.shape[0]):
        for expert, weight in zip(ids[token].tolist(), weights[token].to(dtype), strict=True):
            gate, up = (gate_up[expert].to(dtype) @ x[token].to(dtype)).chunk(2)
            out[token] += weight * (down[expert].to(dtype) @ (F.silu(gate) * up))
    return out.to(x.dtype)
