"""Causal attention as its formula reads: float32, one query at a time. Compare every fast path with this.

Shape letters: Q queries, T keys, B sequences, S their length, A heads, G heads of keys and values, X query/key width,
V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from indexshare.ops.precision import wide


def dense_attention(q: Tensor, k: Tensor, v: Tensor, first: int, scale: float) -> Tensor:
    """Causal attention of consecutive queries over all keys before them.

    Args:
        q: `[Q, A, X]`, the queries at positions `first .. first+Q-1`; k: `[T, G, X]`; v: `[T, G, V]`. Each of the G
            heads serves A / G heads of queries, which lie together.
        scale: softmax scale.

    Returns:
        `[Q, A, V]` in the dtype of q.
    """
    dtype, heads = wide(q.dtype), q.shape[1]
    k_wide, v_wide = (t.to(dtype).repeat_interleave(heads // t.shape[1], dim=1) for t in (k, v))
    out = torch.zeros(*q.shape[:2], v.shape[-1], dtype=dtype, device=q.device)
    for row in range(q.shape[0]):
        stop = first + row + 1
        logits = torch.einsum("ax,tax->at", q[row].to(dtype), k_wide[:stop]) * scale
        out[row] = torch.einsum("at,tav->av", logits.softmax(-1), v_wide[:stop])
    return out.to(q.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Softmax attention of whole sequences: each query over the keys at or before it, differentiable in q, k and v.

    Args:
        q, k: `[B, S, A, X]`; v: `[B, S, A, V]`.
        scale: softmax scale.

    Returns:
        `[B, S, A, V]`.
    """
    return torch.stack([dense_attention(*sequence, 0, scale) for sequence in zip(q, k, v, strict=True)])
