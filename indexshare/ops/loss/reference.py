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
