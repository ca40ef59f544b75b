"""Cross-entropy of a linear head as its formula reads: float32, all logits at once. Compare fast paths with this."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from indexshare.ops.precision import wide


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int) -> Tensor:
    """Sum of the cross-entropies of `hidden @ weight.T`, a float32 (or wider) scalar in nats.

    Shapes: hidden `[N, H]`, weight `[V, H]`, targets int64 `[N]`; rows whose target is `ignore` count for nothing.
    """
    dtype = wide(hidden.dtype)
    logits = hidden.to(dtype) @ weight.to(dtype).t()
    return F.cross_entropy(logits, targets, ignore_index=ignore, reduction="sum")


def linear_overlap(draft: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """How much two laws of a linear head have in common: `sum_v min(p, q)`, which is 1 minus their total variation.

    Rejection sampling accepts a draft of the law q with this probability (`engine/drafting/acceptance.py`).

    Args:
        draft: `[N, H]`; q is the softmax of `draft @ weight.T`.
        target: `[N, H]`, gives p in the same way; a constant, as is `weight`: gradients go to `draft` alone.
        weight: `[V, H]`.

    Returns:
        float32 (or wider) `[N]`.
    """
    dtype = wide(draft.dtype)
    head = weight.detach().to(dtype).t()
    q, p = (draft.to(dtype) @ head).softmax(-1), (target.detach().to(dtype) @ head).softmax(-1)
    return (p.minimum(q)).sum(-1)
