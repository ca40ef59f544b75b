"""Attention to everything before, in plain torch; see the reference for contracts and shape letters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Booleans of one chunk's mask.
CHUNK_BYTES = 16 << 20


def dense_attention(q: Tensor, k: Tensor, v: Tensor, first: int, scale: float) -> Tensor:
    """See the reference; chunks of queries bound the mask, and the fused kernel keeps no Q x T matrix."""
    width = v.shape[-1]
    if v.shape[-1] < k.shape[-1]:  # the fused CPU kernel wants equal widths
        v = F.pad(v, (0, k.shape[-1] - v.shape[-1]))
    elif k.shape[-1] < v.shape[-1]:
        q, k = (F.pad(t, (0, v.shape[-1] - t.shape[-1])) for t in (q, k))
    groups, heads = k.shape[1], q.shape[1]
    if groups in (1, heads):
        q_h, k_h, v_h = (t.transpose(0, 1)[None] for t in (q, k, v))
        k_h, v_h = (t.expand(-1, heads, -1, -1) for t in (k_h, v_h))
    else:  # a group is a sequence of its own, whose heads read one key
        q_h = q.transpose(0, 1).unflatten(0, (groups, -1))
        k_h, v_h = (t.transpose(0, 1)[:, None].expand(-1, heads // groups, -1, -1) for t in (k, v))
    if first == 0 and q.shape[0] == k.shape[0]:
        out = F.scaled_dot_product_attention(q_h, k_h, v_h, is_causal=True, scale=scale)
    elif q.shape[0] == 1:
        out = F.scaled_dot_product_attention(q_h, k_h[:, :, : first + 1], v_h[:, :, : first + 1], scale=scale)
    else:
        out = torch.cat([_masked(q_h, k_h, v_h, first, c, scale) for c in _mask_chunks(q.shape[0], k.shape[0])], dim=2)
    return out.flatten(0, 1).transpose(0, 1)[..., :width]


def _mask_chunks(queries: int, keys: int) -> list[slice]:
    rows = max(1, CHUNK_BYTES // max(1, keys))
    return [slice(start, min(start + rows, queries)) for start in range(0, queries, rows)]


def _masked(q: Tensor, k: Tensor, v: Tensor, first: int, chunk: slice, scale: float) -> Tensor:
    stop = first + chunk.stop
    rows = torch.arange(first + chunk.start, stop, device=q.device)
    mask = torch.arange(stop, device=q.device) <= rows[:, None]
    return F.scaled_dot_product_attention(q[:, :, chunk], k[:, :, :stop], v[:, :, :stop], attn_mask=mask, scale=scale)
