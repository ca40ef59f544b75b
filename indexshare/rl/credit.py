"""Credit: from rewards and values to advantages of the policy and targets of the critic. Numpy, float64.

Only trained tokens are steps of the decision process (skip-observation GAE of SAO, arXiv 2607.07508):
behind the last token of an action stands the first token of the next one, and observations between them are part of its
state. `credit_reference` says the same token by token.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from indexshare.config.fields import check_fields
from indexshare.rl.trajectory import Segment, Trajectory

Boundary = Literal["decay", "bootstrap", "none"]
Normalise = Literal["token", "rollout", "segment"]
_CHUNK = 128  # tokens whose discounted sums one product gives


@dataclass(frozen=True, kw_only=True)
class Credit:
    """How rewards are handed back to tokens.

    Attributes:
        gamma: discount per trained token.
        lambda_policy: of the policy's advantages; None for `1 - 1 / (alpha * L)`, at least 0, with L trained tokens.
        alpha: see above; 1.5 in CompactionRL and SAO, 0.05 in VAPO (arXiv 2504.05118).
        length_of: whether L counts the trained tokens of a segment or of the whole rollout.
        lambda_critic: of the critic's targets.
        boundary: across the segments of a rollout. `decay` (CompactionRL): each segment by itself, with the whole
            reward at its end, its advantages times (gamma * lambda) to the number of trained tokens behind it.
            `bootstrap`: one chain of all trained tokens, so that the last one before a boundary looks to the value of
            the first one behind it. `none`: as `decay`, without the factor.
        truncated: what stands behind the end of a rollout that ran out of room: nothing, or the critic's value there.
    """

    gamma: float = 1.0
    lambda_policy: float | None = None
    alpha: float = 1.5
    length_of: Literal["segment", "rollout"] = "segment"
    lambda_critic: float = 1.0
    boundary: Boundary = "decay"
    truncated: Literal["zero", "value"] = "zero"

    def __post_init__(self) -> None:
        check_fields(self, "credit: ")
        for name in ("gamma", "lambda_policy", "lambda_critic"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"credit: {name} is {value}; expected a number from 0 to 1")
        if not self.alpha > 0:
            raise ValueError(f"credit: alpha is {self.alpha}; expected a number above 0")

    def policy_lambda(self, length: int) -> float:
        """Lambda for a chain of so many trained tokens."""
        if self.lambda_policy is not None:
            return self.lambda_policy
        return max(0.0, 1.0 - 1.0 / (self.alpha * length)) if length else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Shares:
    """Of one segment: float64 [T] each, zero where a token is not trained."""

    advantages: np.ndarray
    targets: np.ndarray


def discounted_sums(deltas: np.ndarray, factor: float) -> np.ndarray:
    """`sums[t] = deltas[t] + factor * sums[t + 1]`, float64 [N], in chunks that are one product each."""
    sums = np.empty(len(deltas), dtype=np.float64)
    most = min(_CHUNK, len(deltas))
    distance = np.arange(most)[None, :] - np.arange(most)[:, None]
    powers = np.where(distance >= 0, np.power(float(factor), np.maximum(distance, 0)), 0.0)
    behind = 0.0
    for start in range((len(deltas) - 1) // _CHUNK * _CHUNK, -1, -_CHUNK):
        part = deltas[start : start + _CHUNK]
        size = len(part)
        found = powers[:size, :size] @ part + behind * np.power(float(factor), np.arange(size, 0, -1))
        sums[start : start + size] = found
        behind = found[0]
    return sums


def step_rewards(segment: Segment) -> np.ndarray:
    """Rewards at the trained tokens, float64 [trained]: each holds what came before the next trained token.

    What came before the first trained token is nobody's.
    """
    places = np.flatnonzero(segment.mask)
    if not len(places):
        return np.zeros(0)
    return np.add.reduceat(segment.rewards.astype(np.float64), places)


def credit(trajectory: Trajectory, values: Sequence[np.ndarray], settings: Credit) -> list[Shares]:
    """Advantages and targets of every segment of a rollout.

    Args:
        trajectory: the rollout.
        values: for each segment float [T + 1]: the critic's value of the state before each token, and behind the last.
            The first is not used.
        settings: the rules.

    Raises:
        ValueError: values of another shape.
    """
    segments = trajectory.segments
    shapes = [np.shape(each) for each in values]
    if shapes != [(len(segment) + 1,) for segment in segments]:
        raise ValueError(f"values have shapes {shapes}; expected one more than the tokens of each segment")
    outcome = trajectory.reward
    if settings.truncated == "value" and trajectory.status == "truncated":
        outcome += settings.gamma * float(values[-1][-1])
    rewards = [step_rewards(segment) for segment in segments]
    before = [np.asarray(v[:-1], dtype=np.float64)[s.mask] for v, s in zip(values, segments, strict=True)]
    if settings.boundary == "bootstrap":
        found = _one_chain(rewards, before, outcome, settings)
    else:
        found = _chains(rewards, before, outcome, settings)
    return [_spread(segment, *each) for segment, each in zip(segments, found, strict=True)]


_Pair = tuple[np.ndarray, np.ndarray]


def _chain(rewards: np.ndarray, values: np.ndarray, outcome: float, lambda_: float, settings: Credit) -> _Pair:
    """Advantages and targets of one chain of trained tokens, the outcome at its end."""
    if not len(rewards):
        return np.zeros(0), np.zeros(0)
    earned = rewards.copy()
    earned[-1] += outcome
    deltas = earned + settings.gamma * np.append(values[1:], 0.0) - values
    advantages = discounted_sums(deltas, settings.gamma * lambda_)
    return advantages, discounted_sums(deltas, settings.gamma * settings.lambda_critic) + values


def _one_chain(rewards: list[np.ndarray], values: list[np.ndarray], outcome: float, settings: Credit) -> list[_Pair]:
    joined = np.concatenate(rewards)
    chain = _chain(joined, np.concatenate(values), outcome, settings.policy_lambda(len(joined)), settings)
    cuts = np.cumsum([len(each) for each in rewards])[:-1]
    return list(zip(*(np.split(part, cuts) for part in chain), strict=True))


def _chains(rewards: list[np.ndarray], values: list[np.ndarray], outcome: float, settings: Credit) -> list[_Pair]:
    total = sum(len(each) for each in rewards)
    found, behind = list[_Pair](), total
    for earned, before in zip(rewards, values, strict=True):
        behind -= len(earned)
        lambda_ = settings.policy_lambda(total if settings.length_of == "rollout" else len(earned))
        advantages, targets = _chain(earned, before, outcome, lambda_, settings)
        factor = (settings.gamma * lambda_) ** behind if settings.boundary == "decay" else 1.0
        found.append((advantages * factor, targets))
    return found


def _spread(segment: Segment, advantages: np.ndarray, targets: np.ndarray) -> Shares:
    full = Shares(advantages=np.zeros(len(segment)), targets=np.zeros(len(segment)))
    full.advantages[segment.mask] = advantages
    full.targets[segment.mask] = targets
    return full


def whiten(advantages: np.ndarray, floor: float) -> np.ndarray:
    """Mean zero and deviation one over the trained tokens of the whole batch, float64 [N].

    Where all rollouts end alike the deviation is the critic's noise: it is not divided by less than `floor`.
    """
    if not len(advantages):
        return np.zeros(0)
    return (advantages - advantages.mean()) / max(float(advantages.std()), floor)


def group_advantages(
    rewards: Sequence[float], groups: Sequence[Hashable], *, floor: float, divide: bool = True
) -> np.ndarray:
    """GRPO: each rollout's reward against those of the same problem, float64 [rollouts].

    Args:
        rewards: of the rollouts.
        groups: rollouts of one problem share an entry.
        floor: least deviation to divide by.
        divide: by the deviation of the group; False only subtracts the mean.
    """
    values, found = np.asarray(rewards, dtype=np.float64), np.zeros(len(rewards))
    for group in dict.fromkeys(groups):
        rows = np.asarray([each == group for each in groups])
        centred = values[rows] - values[rows].mean()
        found[rows] = centred / max(float(values[rows].std()), floor) if divide else centred
    return found


def token_weights(counts: Sequence[Sequence[int]], normalise: Normalise) -> list[list[float]]:
    """Weight of each trained token of each segment in the loss; all tokens' weights add up to one.

    Args:
        counts: trained tokens of every segment of every rollout of the global batch.
        normalise: `token`: all trained tokens of the batch count alike (CompactionRL, GLM-5.2). `rollout`: all rollouts
            count alike, however many tokens. `segment`: all segments do, so that rollouts of many segments count more.
    """
    totals = [sum(each) for each in counts]
    if normalise == "token":
        return [[1.0 / sum(totals) if n else 0.0 for n in each] for each in counts]
    if normalise == "rollout":
        there = sum(total > 0 for total in totals)
        return [[1.0 / (there * total) if n else 0.0 for n in each] for each, total in zip(counts, totals, strict=True)]
    there = sum(n > 0 for each in counts for n in each)
    return [[1.0 / (there * n) if n else 0.0 for n in each] for each in counts]
