"""`losses` and `distill` in the plainest terms: one token after the other, all logits at hand, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indexshare.rl.losses import Ratio


def logprobs(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """`losses.token_logprobs`."""
    found = []
    for row, target in zip(hidden, targets.tolist(), strict=True):
        exponentials = (head @ row).exp()
        found.append((exponentials[target] / exponentials.sum()).log())
    return torch.stack(found)


def policy_loss(
    logprobs: Tensor, behaviour: Sequence[float], advantages: Sequence[float], weights: Sequence[float], ratio: Ratio
) -> Tensor:
    """`losses.policy_loss`."""
    total = torch.zeros((), dtype=torch.float64)
    for n in range(len(behaviour)):
        moved = (logprobs[n] - behaviour[n]).exp()
        value = float(moved.detach())
        if ratio.kind == "direct":
            factor = value if ratio.low < value < ratio.high else 0.0
            total = total - weights[n] * factor * advantages[n] * logprobs[n]
            continue
        clipped = min(max(value, ratio.low), ratio.high)
        if value * advantages[n] <= clipped * advantages[n]:
            total = total - weights[n] * moved * advantages[n]
        else:
            total = total - weights[n] * clipped * advantages[n]
    return total


def value_loss(
    values: Tensor,
    targets: Sequence[float],
    weights: Sequence[float],
    before: Sequence[float] | None = None,
    clip: float | None = None,
) -> Tensor:
    """`losses.value_loss`."""
    total = torch.zeros((), dtype=torch.float64)
    for n in range(len(targets)):
        error = (values[n] - targets[n]) ** 2
        if clip is not None and before is not None:
            change = values[n] - before[n]
            near = before[n] + (
                change if -clip <= float(change.detach()) <= clip else clip * torch.sign(change.detach())
            )
            other = (near - targets[n]) ** 2
            error = error if float(error.detach()) >= float(other.detach()) else other
        total = total + 0.5 * weights[n] * error
    return total


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor, weights: Sequence[float]) -> Tensor:
    """`distill.full_vocabulary_loss`, from logits [N, V] of both."""
    total = torch.zeros((), dtype=torch.float64)
    for n, weight in enumerate(weights):
        student = student_logits[n].exp() / student_logits[n].exp().sum()
        teacher = teacher_logits[n].exp() / teacher_logits[n].exp().sum()
        for i in range(len(student)):
            total = total + weight * student[i] * (student[i].log() - teacher[i].log())
    return total


def top_k_reverse_kl(
    student_logits: Tensor, ids: Sequence[Sequence[int]], teacher: Sequence[Sequence[float]], weights: Sequence[float]
) -> Tensor:
    """`distill.top_k_loss`, from the student's logits [N, V] and the teacher's log-probabilities of its k first ids."""
    total = torch.zeros((), dtype=torch.float64)
    for n, weight in enumerate(weights):
        own = torch.stack([student_logits[n][i].exp() for i in ids[n]])
        own = own / own.sum()
        theirs = torch.tensor(teacher[n], dtype=torch.float64).exp()
        theirs = theirs / theirs.sum()
        for q, p in zip(own, theirs, strict=True):
            total = total + weight * q * (q.log() - p.log())
    return total
