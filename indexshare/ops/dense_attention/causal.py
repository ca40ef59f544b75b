"""Causal attention of whole equal-length sequences, for training with full attention on a CPU.

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
KEEP_BYTES = 32 << 20  # probabilities kept for the backward pass; more are computed again


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """See the reference. Scores exist one block at a time; probabilities are kept in the inputs' dtype for the backward
    pass while they fit `KEEP_BYTES`.
    """
    heads = [t.transpose(1, 2).flatten(0, 1) for t in (q, k, v)]
    out = _CausalAttention.apply(*heads, scale)
    return out.view(q.shape[0], q.shape[2], q.shape[1], -1).transpose(1, 2)


def _bounds(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _probabilities(q: Tensor, k: Tensor, start: int, stop: int, scale: float) -> Tensor:
    """`[B * A, stop - start, stop]` from queries and keys `[B * A, S, X]`.

    The softmax is computed in float32, but of logits that a bfloat16 product has rounded; `docs/LOG.md` has the price.
    """
    scores = torch.bmm(q[:, start:stop] * scale, k[:, :stop].mT)
    future = scores.new_full((stop - start, stop - start), -torch.inf).triu_(1)
    scores[:, :, start:].add_(future)
    return F.softmax(scores, dim=-1)


class _CausalAttention(torch.autograd.Function):
    """On `[B * A, S, X]`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        length, kept = q.shape[1], []
        keep = q.shape[0] * length * (length + BLOCK) // 2 * q.element_size() <= KEEP_BYTES
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        for start, stop in _bounds(length):
            weights = _probabilities(q, k, start, stop, scale)
            out[:, start:stop] = torch.bmm(weights, v[:, :stop])
            if keep:
                kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, *kept = ctx.saved_tensors
        grad = grad.contiguous()
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        v_t = v.mT
        for block, (start, stop) in enumerate(_bounds(q.shape[1])):
            weights = kept[block] if kept else _probabilities(q, k, start, stop, ctx.scale)
            g = grad[:, start:stop]
            d_v[:, :stop] += torch.bmm(weights.mT, g)
            d_scores = torch._softmax_backward_data(torch.bmm(g, v_t[:, :, :stop]), weights, -1, q.dtype)
            d_q[:, start:stop] = torch.bmm(d_scores, k[:, :stop])
            d_k[:, :stop] += torch.bmm(d_scores.mT, q[:, start:stop])
        return d_q.mul_(ctx.scale), d_k.mul_(ctx.scale), d_v, None
