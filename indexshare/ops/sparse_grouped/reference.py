"""Grouped-query attention over chosen keys as its formula reads: float32, a loop over queries.

Compare every fast path with this. Shape letters: Q queries, A heads, G heads of keys and values, X their width, V width
of values, S rows of the pools, k selected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from indexshare.ops.coded.rows import Rows
from indexshare.ops.precision import wide


def sparse_grouped(q: Tensor, keys: Rows, values: Rows, slots: Tensor, scale: float, groups: int) -> Tensor:
    """Attention of queries over the chosen keys, each key head serving A / G query heads, which lie together.

    Args:
        q: `[Q, A, X]`; keys: `[S, G * X]`, values: `[S, G * V]`, the heads one after the other, or the same rows as a
            cache keeps them.
        slots: int64 `[Q, k]` rows of the pools, -1 for none. A query with no slot at all gets zeros.
        scale: softmax scale. groups: G.

    Returns:
        `[Q, A, V]` in the dtype of q.
    """
    dtype, heads = wide(q.dtype), q.shape[1]
    out = torch.zeros(*q.shape[:2], values.shape[1] // groups, dtype=dtype, device=q.device)
    for row in range(q.shape[0]):
        chosen = slots[row][slots[row] >= 0]
        if chosen.numel():
            own = [t[chosen].to(dtype).unflatten(1, (groups, -1)) for t in (keys, values)]
            k, v = (t.repeat_interleave(heads // groups, dim=1) for t in own)
            logits = torch.einsum("ax,tax->at", q[row].to(dtype), k) * scale
            out[row] = torch.einsum("at,tav->av", logits.softmax(-1), v)
    return out.to(q.dtype)
