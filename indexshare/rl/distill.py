"""On-policy distillation: the student samples, teachers score its tokens, and the reverse KL is learned from.

Three forms, from the cheapest to the whole: the sampled token alone (an advantage for `losses.policy_loss`, alone or
added to one from rewards), the teacher's k likeliest tokens, and the whole vocabulary, for which a teacher leaves its
last hidden states and its head. Teacher and student must have one tokenizer and one temperature.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from indexshare.rl.losses import LOGIT_BYTES, made_again, wide


@torch.no_grad()
def sampled_token_advantages(
    student: Tensor, teacher: Tensor, *, scale: float = 1.0, limit: float | None = None
) -> Tensor:
    """`scale * (log teacher - log student)` of the sampled tokens, [N], cut to -limit and limit; without a graph.

    No credit flows from token to token: the reverse KL of a sequence is the sum of those of its tokens.
    """
    found = teacher - student
    if limit is not None:
        found = found.clamp(-limit, limit)
    return scale * found


def top_k_loss(
    hidden: Tensor, head: Tensor, ids: Tensor, teacher: Tensor, weights: Tensor, *, rows: int | None = None
) -> Tensor:
    """Reverse KL over the teacher's k likeliest tokens, both sides made to sum to one over them, a scalar.

    Without the second normalisation the loss falls when the student leaves the k tokens altogether (arXiv 2603.25562).

    Args:
        hidden: [N, H] of the student; head: [V, H], its head.
        ids: int64 [N, k].
        teacher: float [N, k], the teacher's log-probabilities of them.
        weights: [N].
        rows: at a time.
    """
    rows = rows or max(1, LOGIT_BYTES // (4 * head.shape[0]))
    parts = zip(*(t.split(rows) for t in (hidden, ids, teacher, weights)), strict=True)
    return sum(
        (made_again(_top_k, h, head, i, t, w) for h, i, t, w in parts),
        start=wide(hidden.new_zeros(())),
    )


def _top_k(hidden: Tensor, head: Tensor, ids: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    own = wide(F.linear(hidden, head)).gather(1, ids).log_softmax(-1)
    return (weights * _kl(own, teacher.to(own.dtype).log_softmax(-1))).sum()


def _kl(own: Tensor, other: Tensor) -> Tensor:
    return (own.exp() * (own - other)).sum(-1)


def full_vocabulary_loss(
    hidden: Tensor,
    head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    weights: Tensor,
    *,
    rows: int | None = None,
) -> Tensor:
    """Reverse KL over the whole vocabulary, a scalar; logits of both sides exist for a few rows at a time.

    Args:
        hidden: [N, H] of the student; head: [V, H], its head.
        teacher_hidden: [N, H'], last hidden states that a teacher left; teacher_head: [V, H'], its head.
        weights: [N].
        rows: at a time.
    """
    rows = rows or max(1, LOGIT_BYTES // (8 * head.shape[0]))
    parts = zip(*(t.split(rows) for t in (hidden, teacher_hidden, weights)), strict=True)
    return sum(
        (made_again(_full, h, head, t, teacher_head, w) for h, t, w in parts),
        start=wide(hidden.new_zeros(())),
    )


def _full(hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor, weights: Tensor) -> Tensor:
    own = wide(F.linear(hidden, head)).log_softmax(-1)
    with torch.no_grad():
        other = wide(F.linear(teacher_hidden, teacher_head)).log_softmax(-1).to(own.dtype)
    return (weights * _kl(own, other)).sum()
