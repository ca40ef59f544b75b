"""Cross-entropy of a linear head in plain torch, never storing all logits; see the reference for contracts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from indexshare.ops.precision import wide

CHUNK_BYTES = 8 << 20  # of float32 logits held at once


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int) -> Tensor:
    """See the reference; products are in the inputs' dtype, softmax and sums in float32 or wider."""
    if not torch.is_grad_enabled():  # a custom function is told "gradient wanted" of a parameter even then
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(hidden, weight, targets, ignore)


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies of hidden @ weight.T, whose gradient is made chunk by chunk in the forward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int
    ) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
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
