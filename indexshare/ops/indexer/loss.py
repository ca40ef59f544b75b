"""The indexer's learning signal: KL to the head-averaged attention, with its gradient computed chunk by chunk.

Nothing else needs this graph (the loss is detached from the model on one side and the target on the other), so
the gradient is taken in the forward pass and no score matrix outlives its chunk.
Products are in the inputs' dtype, everything between them in float32 or wider.
Shape letters: N packed rows, H index heads, D index width, A attention heads, R latent width, k selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from indexshare.ops.indexer.kl_rows import KLRows, Teacher
from indexshare.ops.precision import wide

CHUNK_BYTES = 8 << 20  # what a core keeps near it


class _IndexerKL(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        q: Tensor,
        weights: Tensor,
        keys: Tensor,
        teachers: Sequence[Teacher],
        groups: list[KLRows],
    ) -> Tensor:
        heads = 2 * q.shape[1] + teachers[0].queries.shape[1]
        grads = tuple(torch.zeros(t.shape, dtype=wide(t.dtype), device=t.device) for t in (q, weights, keys))
        total = torch.zeros((), dtype=wide(q.dtype), device=q.device)
        for group in groups:
            width = group.slots.shape[1] if group.slots is not None else int(group.rows.max()) + 1 - group.first
            chunk = max(1, CHUNK_BYTES // (4 * width * heads))
            for start in range(0, group.rows.numel(), chunk):
                part = slice(start, start + chunk)
                total += _chunk(q, weights, keys, teachers, group, part, grads)
        ctx.save_for_backward(*grads)
        ctx.dtypes = (q.dtype, weights.dtype, keys.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scaled = tuple((g * grad).to(dtype) for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return (*scaled, None, None)


def _chunk(
    q: Tensor, weights: Tensor, keys: Tensor, teachers: Sequence[Teacher], group: KLRows, part: slice,
    grads: tuple[Tensor, ...],
) -> Tensor:  # fmt: skip
    """Loss of one chunk of rows; adds its gradients to `grads` in place."""
    rows, dtype = group.rows[part], wide(q.dtype)
    q_c, w_c = q[rows], weights[rows].to(dtype)
    hidden = None
    if group.slots is not None:
        slots = group.slots[part]
        k_c = keys[slots.flatten()].view(*slots.shape, -1)  # [c, k, D]
        dots = q_c @ k_c.transpose(1, 2)
    else:
        stop = int(rows.max()) + 1
        hidden = torch.arange(group.first, stop, device=q.device) > rows[:, None]
        k_c = keys[group.first : stop]  # [T, D]
        dots = q_c @ k_c.t()
    dots = dots.to(dtype)
    target = _target(teachers, rows, group, part, hidden, dtype)
    active = dots.relu()
    scores = (w_c[:, None] @ active)[:, 0]
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    log_q = scores.log_softmax(-1)
    loss = (torch.xlogy(target, target) - torch.where(target > 0, target * log_q, 0.0)).sum()
    d_scores = log_q.exp() - target
    grads[1].index_add_(0, rows, (active @ d_scores[:, :, None])[..., 0])
    d_dots = (d_scores[:, None] * w_c[:, :, None]).mul_(dots > 0).to(q.dtype)
    grads[0].index_add_(0, rows, (d_dots @ k_c).to(dtype))
    if group.slots is not None:
        grads[2].index_add_(0, group.slots[part].flatten(), (d_dots.transpose(1, 2) @ q_c).flatten(0, 1).to(dtype))
    else:
        grads[2][group.first : stop] += d_dots.flatten(0, 1).t() @ q_c.flatten(0, 1)
    return loss


def _target(
    teachers: Sequence[Teacher], rows: Tensor, group: KLRows, part: slice, hidden: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """What the indexer learns at one chunk of rows, `[c, T]` or `[c, k]`: the teachers' mean attention."""
    target: Tensor | None = None
    for teacher in teachers:
        queries, latents = teacher.queries[rows], teacher.latents
        if group.slots is not None:
            slots = group.slots[part]
            logits = queries @ latents[slots.flatten()].view(*slots.shape, -1).transpose(1, 2)
        else:
            assert hidden is not None
            logits = queries @ latents[group.first : group.first + hidden.shape[1]].t()
        logits = logits.to(dtype) * teacher.scale
        if hidden is not None:
            logits = logits.masked_fill_(hidden[:, None], -torch.inf)
        own = logits.softmax(-1).mean(1)
        if len(teachers) == 1:
            return own
        target = own * teacher.weight if target is None else target.add_(own, alpha=teacher.weight)
    assert target is not None
    return target


def indexer_kl(
    q: Tensor,
    weights: Tensor,
    keys: Tensor,
    queries: Tensor,
    latents: Tensor,
    groups: list[KLRows],
    scale: float,
) -> Tensor:
    """See the reference; the gradient is made with the loss, in chunks of rows."""
    return _IndexerKL.apply(q, weights, keys, [Teacher(queries.detach(), latents.detach(), scale)], groups)


def indexer_kl_mean(
    q: Tensor, weights: Tensor, keys: Tensor, teachers: Sequence[Teacher], groups: list[KLRows]
) -> Tensor:
    """See the reference; one distribution at a time exists beside their mean, for a chunk of rows."""
    constant = [Teacher(t.queries.detach(), t.latents.detach(), t.scale, t.weight) for t in teachers]
    return _IndexerKL.apply(q, weights, keys, constant, groups)
