"""Causal attention of whole equal-length sequences, for training on a CPU: full, or restricted to a selection.

torch's fused kernel spends most of its time in the backward pass on a CPU, and gathering rows for every query costs
more than multiplying with all of them until the context is many times the selection. Batched products over blocks
of queries take about half as long at training lengths, and the triangle above the diagonal is skipped by blocks.
Shape letters: B sequences, S their length, A heads, X query/key width, V value width, k selected.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128  # queries per block: scores of one block stay in the cache
KEEP_BYTES = 32 << 20  # probabilities kept for the backward pass; more are computed again


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, *, selected: Tensor | None = None, limit: int = 0
) -> Tensor:
    """Softmax attention of each query over the keys at or before it, or over those of them that are selected.

    Args:
        q, k: `[B, S, A, X]`; v: `[B, S, A, V]`.
        scale: softmax scale.
        selected: int64 `[B, S - limit, k]`, the positions that queries from `limit` on attend to, all real and none
            after the query; queries before `limit` attend to everything. None: full attention for all.

    Returns:
        `[B, S, A, V]`. Differentiable in q, k and v; softmax in float32. Scores exist one block at a time;
        probabilities are kept in the inputs' dtype for the backward pass while they fit `KEEP_BYTES`.
    """
    heads = [t.transpose(1, 2).flatten(0, 1) for t in (q, k, v)]
    out = _CausalAttention.apply(*heads, scale, q.shape[2], selected, limit if selected is not None else q.shape[1])
    return out.view(q.shape[0], q.shape[2], q.shape[1], -1).transpose(1, 2)


class _Blocks:
    """Blocks of queries `[start, stop)`, and the probabilities of one block."""

    def __init__(self, length: int, scale: float, heads: int, selected: Tensor | None, limit: int) -> None:
        self.scale, self.heads, self.selected, self.limit = scale, heads, selected, limit
        self.bounds = [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]

    def probabilities(self, q: Tensor, k: Tensor, start: int, stop: int) -> Tensor:
        """`[B * A, stop - start, stop]` in float32 from queries and keys `[B * A, S, X]`."""
        scores = torch.bmm(q[:, start:stop] * self.scale, k[:, :stop].mT)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        size = stop - start
        scores[:, :, start:].add_(torch.full((size, size), -torch.inf, device=q.device).triu_(1))
        if stop > self.limit:
            assert self.selected is not None
            first = max(start, self.limit)
            chosen = self.selected[:, first - self.limit : stop - self.limit]
            bias = torch.full((chosen.shape[0], 1, stop - first, stop), -torch.inf, device=q.device)
            bias.scatter_(3, chosen[:, None], 0.0)
            scores.view(-1, self.heads, size, stop)[:, :, first - start :].add_(bias)
        return F.softmax(scores, dim=-1)


class _CausalAttention(torch.autograd.Function):
    """On `[B * A, S, X]`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, heads: int, selected: Tensor | None, limit: int
    ) -> Tensor:
        length = q.shape[1]
        blocks, kept = _Blocks(length, scale, heads, selected, limit), []
        keep = q.shape[0] * length * (length + BLOCK) // 2 * q.element_size() <= KEEP_BYTES
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        for start, stop in blocks.bounds:
            weights = blocks.probabilities(q, k, start, stop).to(v.dtype)
            out[:, start:stop] = torch.bmm(weights, v[:, :stop])
            if keep:
                kept.append(weights)
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.blocks = blocks
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, *kept = ctx.saved_tensors
        blocks: _Blocks = ctx.blocks
        grad = grad.contiguous()
        inner = (grad.to(torch.promote_types(grad.dtype, torch.float32)) * out).sum(-1, keepdim=True)
        d_q, d_k, d_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        v_t = v.mT
        for block, (start, stop) in enumerate(blocks.bounds):
            weights = kept[block] if kept else blocks.probabilities(q, k, start, stop).to(v.dtype)
            g = grad[:, start:stop]
            d_v[:, :stop] += torch.bmm(weights.mT, g)
            d_scores = torch.bmm(g, v_t[:, :, :stop]).to(inner.dtype)
            d_scores = d_scores.sub_(inner[:, start:stop]).mul_(weights).to(q.dtype)
            d_q[:, start:stop] = torch.bmm(d_scores, k[:, :stop])
            d_k[:, :stop] += torch.bmm(d_scores.mT, q[:, start:stop])
        return d_q.mul_(blocks.scale), d_k.mul_(blocks.scale), d_v, None, None, None, None
