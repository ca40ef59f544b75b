"""Multi-head latent attention as its formulas read: float32, a loop over queries. Compare every fast path with this.

Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1 and appendix C; the absorbed form moves the key up-projection to
the query and the value up-projection behind the sum. Shape letters: Q queries, A heads, C latent, P rope width,
E no-position width, V value width, S rows of the pool, k selected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from indexshare.ops.coded.rows import Rows
from indexshare.ops.precision import wide


def sparse_mla(q: Tensor, pool: Rows, slots: Tensor, scale: float, value_dim: int) -> Tensor:
    """Attention of absorbed queries over the chosen latents.

    Args:
        q: `[Q, A, C + P]` absorbed queries; pool: `[S, C + P]` latent rows, rope key last, or the same as a cache keeps
            them.
        slots: int64 `[Q, k]` rows of the pool, -1 for none. A query with no slot at all gets zeros.
        scale: softmax scale. value_dim: C, the leading part of a row that is summed.

    Returns:
        `[Q, A, C]` in the dtype of q.
    """
    return sparse_mla_with_lse(q, pool, slots, scale, value_dim)[0]


def sparse_mla_with_lse(q: Tensor, pool: Rows, slots: Tensor, scale: float, value_dim: int) -> tuple[Tensor, Tensor]:
    """The same, and the log-sum-exp of the scaled logits, float32 `[Q, A]` (-inf for no slot)."""
    dtype = wide(q.dtype)
    out = torch.zeros(*q.shape[:2], value_dim, dtype=dtype, device=q.device)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=dtype, device=q.device)
    for row in range(q.shape[0]):
        chosen = slots[row][slots[row] >= 0]
        if chosen.numel():
            keys = pool[chosen].to(dtype)
            logits = q[row].to(dtype) @ keys.t() * scale
            out[row] = logits.softmax(-1) @ keys[:, :value_dim]
            lse[row] = logits.logsumexp(-1)
    return out.to(q.dtype), lse


def expanded_mla(q: Tensor, latents: Tensor, kv_b: Tensor, slots: Tensor, scale: float, nope_dim: int) -> Tensor:
    """The same attention with keys and values expanded from the latents for every head.

    Args:
        q: `[Q, A, E + P]` plain queries; latents: `[S, C + P]`; kv_b: `[A, E + V, C]` up-projections, keys first.
        slots, scale: as in `sparse_mla`. nope_dim: E.

    Returns:
        `[Q, A, V]` in the dtype of q.
    """
    dtype = wide(q.dtype)
    rank = kv_b.shape[2]
    up = torch.einsum("sc,aec->sae", latents[:, :rank].to(dtype), kv_b.to(dtype))
    out = torch.zeros(*q.shape[:2], kv_b.shape[1] - nope_dim, dtype=dtype, device=q.device)
    for row in range(q.shape[0]):
        chosen = slots[row][slots[row] >= 0]
        for head in range(q.shape[1]):
            rope = latents[chosen, rank:].to(dtype)
            keys = torch.cat((up[chosen, head, :nope_dim], rope), dim=-1)
            weights = (keys @ q[row, head].to(dtype) * scale).softmax(-1)
            out[row, head] = weights @ up[chosen, head, nope_dim:]
    return out.to(q.dtype)
