"""Causal attention of whole equal-length sequences, for training on a CPU.

torch's fused kernel spends most of its time in the backward pass on a CPU; batched products over blocks of queries
take about half as long at training lengths, and the triangle above the diagonal is skipped block by block.
Shape letters: B sequences, S their length, A heads, X query/key width, V value width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128  # queries per block: scores of one block stay in the cache
LONGEST = 2048  # beyond this length the fused kernel's smaller memory counts for more


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Softmax attention of each query over the keys at or before it.

    Args:
        q, k: `[B, S, A, X]`; v: `[B, S, A, V]`.
        scale: softmax scale.

    Returns:
        `[B, S, A, V]`. Differentiable in q, k and v; softmax in float32, probabilities kept in the inputs' dtype for
        the backward pass (half of B * A * S * S of them).
    """
    heads = [t.transpose(1, 2).flatten(0, 1) for t in (q, k, v)]
    out = _CausalAttention.apply(*heads, scale)
    return out.view(q.shape[0], q.shape[2], q.shape[1], -1).transpose(1, 2)


def _future(size: int, device: torch.device) -> Tensor:
    return torch.full((size, size), -torch.inf, device=device).triu_(1)


class _CausalAttention(torch.autograd.Function):
    """On `[B * A, S, X]`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        length, kept = q.shape[1], []
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        q, k_t, future = q * scale, k.mT, _future(min(BLOCK, length), q.device)
        for start in range(0, length, BLOCK):
            stop = min(start + BLOCK, length)
            size = stop - start
            scores = torch.bmm(q[:, start:stop], k_t[:, :, :stop]).float()
            scores[:, :, start:].add_(future[:size, :size])
            weights = F.softmax(scores, dim=-1).to(v.dtype)
            out[:, start:stop] = torch.bmm(weights, v[:, :stop])
            kept.append(weights)
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, *kept = ctx.saved_tensors
        grad = grad.contiguous()
        inner = (grad.float() * out).sum(-1, keepdim=True)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        v_t = v.mT
        for block in range(len(kept) - 1, -1, -1):
            start, weights = block * BLOCK, kept[block]
            stop = start + weights.shape[1]
            g = grad[:, start:stop]
            d_v[:, :stop] += torch.bmm(weights.mT, g)
            d_scores = torch.bmm(g, v_t[:, :, :stop]).float().sub_(inner[:, start:stop]).mul_(weights).to(q.dtype)
            d_q[:, start:stop] = torch.bmm(d_scores, k[:, :stop])
            d_k[:, :stop] += torch.bmm(d_scores.mT, q[:, start:stop])
        return d_q.mul_(ctx.scale), d_k, d_v, None
