"""The lightning indexer as its formula reads: float32, whole matrices, loops. Compare every fast path with this.

Source: DeepSeek-V3.2 report (arXiv 2512.02556), equation 1: `I[t, s] = sum_h w[t, h] * relu(q[t, h] . k[s])`.
Shape letters: Q queries, T keys, H index heads, D index width, k selected.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indexshare.ops.coded.rows import Rows
from indexshare.ops.indexer.kl_rows import KLRows, Teacher
from indexshare.ops.precision import wide


def index_scores(q: Tensor, weights: Tensor, keys: Tensor) -> Tensor:
    """Scores `[Q, T]` in float32 from q `[Q, H, D]`, weights `[Q, H]` (scales folded in) and keys `[T, D]`."""
    dtype = wide(q.dtype)
    dots = torch.einsum("qhd,td->qht", q.to(dtype), keys.to(dtype))
    return torch.einsum("qh,qht->qt", weights.to(dtype), dots.relu())


def select_topk(q: Tensor, weights: Tensor, keys: Rows, positions: Tensor, topk: int) -> Tensor:
    """The `topk` best keys of each query among those at or before it.

    Highest score first in the choice, equal scores by lower position; the result lists positions ascending.

    Args:
        q, weights, keys: as in `index_scores`, keys also as a cache keeps them; key s is at position s.
        positions: int64 `[Q]`, the position of each query, below T.
        topk: keys to select, at least 1.

    Returns:
        int64 `[Q, topk]`; a query with fewer than `topk` candidates is padded with -1 at the end.
    """
    scores = index_scores(q, weights, keys[:])
    result = torch.full((q.shape[0], topk), -1, dtype=torch.int64, device=q.device)
    for row, position in enumerate(positions.tolist()):
        order = torch.sort(scores[row, : position + 1], descending=True, stable=True).indices[:topk]
        result[row, : order.numel()] = order.sort().values
    return result


def kl_of_scores(scores: Tensor, target: Tensor, visible: Tensor) -> Tensor:
    """`sum over rows of KL(target || softmax(scores))` on the visible keys, a scalar.

    Shapes: scores, target `[Q, T]` (target rows sum to one on visible keys), visible bool `[Q, T]`.
    Source: DeepSeek-V3.2 report, equations 3 (dense warm-up) and 4 (sparse stage, visible = selected).
    """
    log_q = scores.masked_fill(~visible, -torch.inf).log_softmax(-1)
    terms = torch.where(visible & (target > 0), target * (target.clamp_min(1e-38).log() - log_q), 0.0)
    return terms.sum()


def attention_target(q: Tensor, latents: Tensor, visible: Tensor, scale: float) -> Tensor:
    """What the indexer learns: softmax attention averaged over heads, `[Q, T]` float32.

    Shapes: q `[Q, H, R]` absorbed queries, latents `[T, R]`, visible bool `[Q, T]`.
    """
    dtype = wide(q.dtype)
    logits = torch.einsum("qhr,tr->qht", q.to(dtype), latents.to(dtype)) * scale
    return logits.masked_fill(~visible[:, None], -torch.inf).softmax(-1).mean(1)


def indexer_kl(
    q: Tensor, weights: Tensor, keys: Tensor, queries: Tensor, latents: Tensor, groups: list[KLRows], scale: float
) -> Tensor:
    """Sum over rows of `KL(mean over heads of the attention || softmax of the index scores)`, a float32 scalar.

    Args:
        q: `[N, H, D]` index queries; weights: `[N, H]` head weights, scales folded in; keys: `[N, D]`.
        queries: `[N, A, R]` absorbed attention queries; latents: `[N, R]`. Both are constants here.
        groups: which rows, and the candidates of each; rows in no group do not count.
        scale: softmax scale of the attention.

    Gradient reaches q, weights and keys only. Source: DeepSeek-V3.2 report, equations 3 and 4.
    """
    queries, latents = queries.detach(), latents.detach()
    total = torch.zeros((), dtype=wide(q.dtype), device=q.device)
    for group in groups:
        visible = torch.zeros(group.rows.numel(), keys.shape[0], dtype=torch.bool, device=q.device)
        for i, row in enumerate(group.rows.tolist()):
            visible[i, slice(group.first, row + 1) if group.slots is None else group.slots[i]] = True
        target = attention_target(queries[group.rows], latents, visible, scale)
        total = total + kl_of_scores(index_scores(q[group.rows], weights[group.rows], keys), target, visible)
    return total


def indexer_kl_mean(
    q: Tensor, weights: Tensor, keys: Tensor, teachers: Sequence[Teacher], groups: list[KLRows]
) -> Tensor:
    """Sum over rows of `KL(mean of the teachers' attention || softmax of the index scores)`, a float32 scalar.

    The mean is by the teachers' weights. Arguments as in `indexer_kl`, whose sum over the teachers, each times its
    weight, has the same gradient (IndexCache, arXiv 2603.12201, proposition 1) and lies above this by the generalised
    Jensen-Shannon divergence of their attention.
    """
    total = torch.zeros((), dtype=wide(q.dtype), device=q.device)
    for group in groups:
        visible = torch.zeros(group.rows.numel(), keys.shape[0], dtype=torch.bool, device=q.device)
        for i, row in enumerate(group.rows.tolist()):
            visible[i, slice(group.first, row + 1) if group.slots is None else group.slots[i]] = True
        each = [
            t.weight * attention_target(t.queries.detach()[group.rows], t.latents.detach(), visible, t.scale)
            for t in teachers
        ]
        scores = index_scores(q[group.rows], weights[group.rows], keys)
        total = total + kl_of_scores(scores, torch.stack(each).sum(0), visible)
    return total
