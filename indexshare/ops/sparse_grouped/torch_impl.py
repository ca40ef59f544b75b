"""Grouped-query attention over chosen keys in plain torch; see the reference for contracts and shape letters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from indexshare.ops.coded.rows import CodedRows, Rows, require_tensor

# Gathered keys and values of one chunk of queries; about the size of a last-level cache.
CHUNK_BYTES = 16 << 20


def sparse_grouped(q: Tensor, keys: Rows, values: Rows, slots: Tensor, scale: float, groups: int) -> Tensor:
    """See the reference; gathers only what is selected, a chunk of queries at a time, for the backward pass again."""
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (q, keys, values))
    if wanted:
        require_tensor(keys)
        require_tensor(values)
    parts = []
    for chunk in _chunks(q, keys, values, slots):
        arguments = (q[chunk], keys, values, slots[chunk], scale, groups)
        parts.append(checkpoint(_attend, *arguments, use_reentrant=False) if wanted else _attend(*arguments))
    if not parts:
        return q.new_zeros(*q.shape[:2], values.shape[1] // groups)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _chunks(q: Tensor, keys: Rows, values: Rows, slots: Tensor) -> list[slice]:
    row = slots.shape[1] * (keys.shape[1] + values.shape[1]) * q.element_size()
    count = max(1, CHUNK_BYTES // max(1, row))
    return [slice(start, min(start + count, q.shape[0])) for start in range(0, q.shape[0], count)]


def _attend(q: Tensor, keys: Rows, values: Rows, slots: Tensor, scale: float, groups: int) -> Tensor:
    """One chunk: a query is a batch of its own, a group's heads are its queries of one key head."""
    k, v = (_gather(t, slots).unflatten(2, (groups, -1)).transpose(1, 2) for t in (keys, values))  # [c, G, k, X]
    chosen = slots >= 0
    mask = None if bool(chosen.all()) else chosen[:, None, None]
    q_g = q.unflatten(1, (groups, -1))
    if v.shape[-1] != k.shape[-1]:  # the fused CPU kernel wants equal widths
        width = max(k.shape[-1], v.shape[-1])
        q_g, k, padded = (F.pad(t, (0, width - t.shape[-1])) for t in (q_g, k, v))
        out = F.scaled_dot_product_attention(q_g, k, padded, attn_mask=mask, scale=scale)[..., : v.shape[-1]]
    else:
        out = F.scaled_dot_product_attention(q_g, k, v, attn_mask=mask, scale=scale)
    out = out.flatten(1, 2)
    if mask is not None:  # a query without any slot attends to nothing
        out = torch.where(chosen.any(-1)[:, None, None], out, 0.0)
    return out


def _gather(rows: Rows, slots: Tensor) -> Tensor:
    """`[c, k, G * X]`"""
    if isinstance(rows, CodedRows):
        return rows[slots.clamp_min(0)]
    return F.embedding(slots.clamp_min(0), rows)
