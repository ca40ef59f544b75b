"""Sparse latent attention in plain torch; see the reference for contracts and shape letters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from indexshare.ops.coded.rows import CodedRows, Rows, require_tensor
from indexshare.ops.precision import wide

# Gathered latents of one chunk of queries; about the size of a last-level cache.
CHUNK_BYTES = 16 << 20


def sparse_mla(q: Tensor, pool: Rows, slots: Tensor, scale: float, value_dim: int) -> Tensor:
    """Attention of absorbed queries over the chosen latents, `[Q, A, C]`; gathers only what is selected.

    Differentiable in q and pool; the backward pass gathers again instead of keeping the rows.
    Contract: see the reference (without the log-sum-exp).
    """
    if torch.is_grad_enabled() and (q.requires_grad or pool.requires_grad):
        require_tensor(pool)
        return _SparseMLA.apply(q, pool, slots, scale, value_dim)
    if q.shape[0] == 0:
        return q.new_zeros(*q.shape[:2], value_dim)
    parts = [_attend(q[c], _gather(pool, slots[c]), slots[c], scale, value_dim) for c in _chunks(q, slots)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _chunks(q: Tensor, slots: Tensor) -> list[slice]:
    rows = max(1, CHUNK_BYTES // (slots.shape[1] * q.shape[2] * q.element_size()))
    return [slice(start, min(start + rows, q.shape[0])) for start in range(0, q.shape[0], rows)]


def _gather(pool: Rows, slots: Tensor) -> Tensor:
    if isinstance(pool, CodedRows):
        return pool[slots.clamp_min(0)]
    return F.embedding(slots.clamp_min(0), pool)  # [c, k, C + P]


def _attend(q: Tensor, keys: Tensor, slots: Tensor, scale: float, value_dim: int) -> Tensor:
    """One chunk. The values are the keys' leading columns; the spare columns keep the fused kernel applicable."""
    chosen = slots >= 0
    mask = None if bool(chosen.all()) else chosen[:, None, None]
    keys = keys[:, None]
    out = F.scaled_dot_product_attention(q[:, None], keys, keys, attn_mask=mask, scale=scale)[:, 0, :, :value_dim]
    if mask is not None:  # a query without any slot attends to nothing
        out = torch.where(chosen.any(-1)[:, None, None], out, 0.0)
    return out


class _SparseMLA(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, pool: Tensor, slots: Tensor, scale: float, value_dim: int) -> Tensor:  # type: ignore[override]
        with torch.no_grad():
            out = sparse_mla(q, pool, slots, scale, value_dim)
        ctx.save_for_backward(q, pool, slots, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, pool, slots, out = ctx.saved_tensors
        d_q = torch.empty_like(q)
        d_pool = torch.zeros(pool.shape, dtype=wide(pool.dtype), device=pool.device)
        for c in _chunks(q, slots):
            d_q[c], d_keys = _attend_backward(q[c], _gather(pool, slots[c]), slots[c], out[c], grad[c], ctx.scale)
            rows = slots[c].clamp_min(0).flatten()  # masked slots have zero gradient
            d_pool.index_add_(0, rows, d_keys.flatten(0, 1).to(d_pool.dtype))
        return d_q, d_pool.to(pool.dtype), None, None, None


def _attend_backward(
    q: Tensor, keys: Tensor, slots: Tensor, out: Tensor, grad: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of one chunk for q `[c, A, C + P]` and keys `[c, k, C + P]`, given the output and its gradient.

    Batched products over queries; the fused kernel's backward pass is several times slower for single queries.
    """
    value_dim = out.shape[-1]
    scores = torch.bmm(q * scale, keys.mT)
    chosen = slots >= 0
    if not bool(chosen.all()):
        scores = scores.masked_fill(~chosen[:, None], -torch.inf)
    weights = scores.softmax(-1).masked_fill(~chosen.any(-1)[:, None, None], 0.0)
    inner = (grad.to(wide(grad.dtype)) * out).sum(-1, keepdim=True)
    d_scores = torch.bmm(grad, keys[..., :value_dim].mT).to(inner.dtype).sub_(inner).to(q.dtype).mul_(weights)
    d_keys = torch.bmm(d_scores.mT, q * scale)
    d_keys[..., :value_dim] += torch.bmm(weights.mT, grad)
    return torch.bmm(d_scores, keys).mul_(scale), d_keys
