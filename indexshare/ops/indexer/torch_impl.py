"""The lightning indexer in plain torch, in chunks of queries under a byte budget; no queries x keys matrix is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from indexshare.ops.coded.rows import CodedRows, Rows
from indexshare.ops.precision import wide

# Scores of one chunk plus one head's temporary; small enough to stay in the last-level cache of a laptop.
CHUNK_BYTES = 16 << 20
KEYS_AT_ONCE = 8192  # decoded in one piece


def index_scores(q: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """Scores `[Q, T]`, float32; one head at a time so that no `[Q, H, T]` tensor exists. See the reference."""
    dtype = wide(q.dtype)
    q, weights, keys_t = q.to(dtype), weights.to(dtype), keys.to(dtype).t()
    if q.shape[0] == 1:  # decode: one small product for all heads costs fewer calls than a loop
        return weights @ (q[0] @ keys_t).relu_()
    scores = (q[:, 0] @ keys_t).relu_().mul_(weights[:, 0, None])
    for head in range(1, q.shape[1]):
        scores.addcmul_((q[:, head] @ keys_t).relu_(), weights[:, head, None])
    return scores


def select_topk(q: Tensor, weights: Tensor, keys: Rows, positions: Tensor, topk: int) -> Tensor:
    """Exact top-k with ties to the lower position, chunk by chunk. Contract: see the reference."""
    result = torch.full((q.shape[0], topk), -1, dtype=torch.int64, device=q.device)
    rows = max(1, CHUNK_BYTES // (8 * max(1, keys.shape[0])))
    for start in range(0, q.shape[0], rows):
        chunk = slice(start, min(start + rows, q.shape[0]))
        low, high = int(positions[chunk].min()), int(positions[chunk].max())
        scores = _scores(q[chunk], weights[chunk], keys, high + 1)
        if low < high:
            columns = torch.arange(low + 1, high + 1, device=q.device)
            scores[:, low + 1 :].masked_fill_(columns > positions[chunk, None], -torch.inf)
        count = min(topk, high + 1)
        chosen = topk_positions(scores, count)
        if low + 1 < count:
            chosen = _pad_future(chosen, positions[chunk])
        result[chunk, :count] = chosen
    return result


def _scores(q: Tensor, weights: Tensor, keys: Rows, count: int) -> Tensor:
    """Scores `[Q, count]` of the first keys; those that have to be decoded piece by piece."""
    if not isinstance(keys, CodedRows):
        return index_scores(q, weights, keys[:count])
    pieces = [slice(start, min(start + KEYS_AT_ONCE, count)) for start in range(0, count, KEYS_AT_ONCE)]
    return torch.cat([index_scores(q, weights, keys[piece]) for piece in pieces], dim=1)


def topk_positions(scores: Tensor, topk: int) -> Tensor:
    """Ascending positions `[Q, topk]` of the largest `scores [Q, T]`, equal scores by lower position.

    `torch.topk` promises nothing about ties, and ReLU makes a wide plateau of exact zeros. Rows whose threshold
    value also occurs outside the selection are chosen again with a stable sort; without ties that is no row.
    """
    values, indices = scores.topk(topk, dim=-1, sorted=False)
    threshold = values.amin(-1, keepdim=True)
    ambiguous = (scores >= threshold).sum(-1) > topk
    if bool(ambiguous.any()):
        indices[ambiguous] = scores[ambiguous].sort(dim=-1, descending=True, stable=True).indices[:, :topk]
    return indices.sort(dim=-1).values


def _pad_future(chosen: Tensor, positions: Tensor) -> Tensor:
    """Replace positions after the query (chosen only for want of candidates) by -1; they are last already."""
    return chosen.masked_fill(chosen > positions[:, None], -1)
