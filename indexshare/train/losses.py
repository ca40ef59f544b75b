"""Cross-entropies of the language-model head, on tensors: for training and for evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from indexshare import ops
from indexshare.data.batch import IGNORE
from indexshare.ops.loss.reference import linear_cross_entropy

_CHUNK_BYTES = 8 << 20  # of float32 logits held at once


def next_token_loss_reference(hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int = IGNORE) -> Tensor:
    """`next_token_loss` in plain float32 (float64 for float64 inputs), storing all logits."""
    return linear_cross_entropy(hidden, weight, targets, ignore) / (targets != ignore).sum().clamp(min=1)


def next_token_loss(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int = IGNORE, *, count: int | None = None
) -> Tensor:
    """Mean cross-entropy of the language-model head, never storing all logits.

    Args:
        hidden: [N, H], inputs of the head.
        weight: [V, H], the head, same dtype as `hidden`.
        targets: int64 [N]; rows equal to `ignore` count for nothing.
        ignore: see above.
        count: divisor; the number of counted rows when None. With gradient accumulation give the count of the
            whole batch, so that the sum over micro-batches is the mean over the batch.

    Returns:
        float32 scalar, in nats. Softmax and sums are float32 (or wider); products are in the inputs' dtype.
    """
    total = ops.linear_cross_entropy(hidden, weight, targets, ignore)
    return total / max(1, int((targets != ignore).sum()) if count is None else count)


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each position in nats, float32 `[N]`, for evaluation; logits in chunks as above.

    Shapes: hidden `[N, H]`, weight `[V, H]`, targets int64 `[N]`.
    """
    rows = max(1, _CHUNK_BYTES // (4 * weight.shape[0]))
    parts = [
        F.cross_entropy((h @ weight.T).float(), t, reduction="none")
        for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
