"""Losses: next-token and draft-layer cross-entropy, and the bias update that balances experts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from indexshare.data.batch import IGNORE
from indexshare.ops.elementwise import wide

_CHUNK_BYTES = 8 << 20  # of float32 logits held at once


def next_token_loss_reference(hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int = IGNORE) -> Tensor:
    """`next_token_loss` in plain float32 (float64 for float64 inputs), storing all logits."""
    dtype = wide(hidden.dtype)
    logits = hidden.to(dtype) @ weight.to(dtype).T
    total = F.cross_entropy(logits, targets, ignore_index=ignore, reduction="sum")
    return total / (targets != ignore).sum().clamp(min=1)


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of hidden @ weight.T, whose gradient is made chunk by chunk in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        rows = max(1, _CHUNK_BYTES // (4 * weight.shape[0]))
        dtype = wide(hidden.dtype)
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device) if need_weight else None
        for start in range(0, len(hidden), rows):
            h, t = hidden[start : start + rows], targets[start : start + rows]
            counted = t != ignore
            index = t.clamp(min=0)[:, None]
            logits = (h @ weight.T).to(dtype)
            chosen, top = logits.gather(1, index), logits.amax(-1, keepdim=True)
            # One exponential per logit, in place: softmax and log_softmax in float32 take several times as long
            exponentials = logits.sub_(top).exp_()
            norm = exponentials.sum(-1, keepdim=True)
            total += torch.where(counted, (norm.log() + top - chosen)[:, 0], 0.0).sum()
            if not (need_hidden or need_weight):
                continue
            ones = counted[:, None].to(dtype)
            grad = exponentials.mul_(ones / norm).scatter_add_(1, index, -ones).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight, out=grad_hidden[start : start + rows])
            if grad_weight is not None:
                grad_weight += grad.T @ h
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad_output,) = grads
        grad_hidden, grad_weight = ctx.saved_tensors
        scaled = [None if g is None else g * grad_output.to(g.dtype) for g in (grad_hidden, grad_weight)]
        return scaled[0], scaled[1], None, None


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
    if not torch.is_grad_enabled():  # a custom function is told "gradient wanted" of a parameter even then
        hidden, weight = hidden.detach(), weight.detach()
    total = _LinearCrossEntropy.apply(hidden, weight, targets, ignore)
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


def update_expert_bias(bias: Tensor, load: Tensor, rate: float) -> None:
    """Auxiliary-loss-free balancing (arXiv 2408.15664): raise the bias of experts with less than the mean load.

    Args:
        bias: float32 [E], `e_score_correction_bias`, changed in place.
        load: float or int [E], tokens each expert took in the step.
        rate: size of one correction.
    """
    load = load.to(bias.dtype)
    with torch.no_grad():
        bias.add_(torch.sign(load.mean() - load), alpha=rate)
