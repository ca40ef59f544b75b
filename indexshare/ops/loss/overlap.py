"""The overlap of a draft's law with the target's in plain torch, never storing all logits; see the reference.

Source of the gradient: "Breaking Entropy Bounds" (arXiv 2606.12370), equation 11: with S = sum_v [q_v <= p_v] q_v, the
overlap's derivative by logit j of the draft is q_j ([q_j <= p_j] - S). No entry is larger than 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from indexshare.ops.precision import wide

CHUNK_BYTES = 8 << 20  # of float32 logits held at once


def linear_overlap(draft: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """See the reference; products are in the inputs' dtype, softmax and sums in float32 or wider."""
    if not torch.is_grad_enabled():  # a custom function is told "gradient wanted" of a parameter even then
        draft = draft.detach()
    overlap: Tensor = _LinearOverlap.apply(draft, target.detach(), weight.detach())
    return overlap


class _LinearOverlap(torch.autograd.Function):
    """Overlaps, whose gradients are made chunk by chunk in the forward pass: `[N, H]` is kept and no logits."""

    @staticmethod
    def forward(ctx: Any, draft: Tensor, target: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        rows = max(1, CHUNK_BYTES // (4 * weight.shape[0]))
        dtype = wide(draft.dtype)
        overlap = torch.empty(len(draft), dtype=dtype, device=draft.device)
        gradient = torch.empty_like(draft) if ctx.needs_input_grad[0] else None
        for start in range(0, len(draft), rows):
            part = slice(start, start + rows)
            q = (draft[part] @ weight.T).to(dtype).softmax(-1)
            p = (target[part] @ weight.T).to(dtype).softmax(-1)
            overlap[part] = torch.minimum(p, q).sum(-1)
            if gradient is not None:
                below = q * (q <= p)
                unit = below.sub_(q.mul_(below.sum(-1, keepdim=True)))
                torch.mm(unit.to(draft.dtype), weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        return overlap

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else gradient * grads[0][:, None].to(gradient.dtype), None, None
