"""`credit` in the plainest terms: Python numbers, token by token, every rule where it stands in the papers."""

from __future__ import annotations

from collections.abc import Sequence

from indexshare.rl.credit import Credit
from indexshare.rl.trajectory import Trajectory


def credit(
    trajectory: Trajectory, values: Sequence[Sequence[float]], settings: Credit
) -> list[tuple[list[float], list[float]]]:
    """Advantages and targets, one per token of each segment, as `credit.credit` gives them."""
    outcome = trajectory.reward
    if trajectory.status == "truncated" and settings.truncated == "value":
        outcome = outcome + settings.gamma * float(values[-1][-1])
    steps = [(n, t) for n, segment in enumerate(trajectory.segments) for t in range(len(segment)) if segment.mask[t]]
    advantages = [[0.0] * len(segment) for segment in trajectory.segments]
    targets = [[0.0] * len(segment) for segment in trajectory.segments]
    for place, (n, t) in enumerate(steps):
        inside = [step for step in steps if step[0] == n]
        if settings.boundary == "bootstrap":
            chain, length, behind = steps[place:], len(steps), 0
        else:
            chain = [step for step in steps[place:] if step[0] == n]
            length = len(steps) if settings.length_of == "rollout" else len(inside)
            behind = len([step for step in steps if step[0] > n])
        if settings.lambda_policy is None:
            lambda_ = max(0.0, 1.0 - 1.0 / (settings.alpha * length))
        else:
            lambda_ = settings.lambda_policy
        deltas = _deltas(trajectory, values, chain, outcome, settings.gamma)
        advantage = sum((settings.gamma * lambda_) ** k * delta for k, delta in enumerate(deltas))
        if settings.boundary == "decay":
            advantage = advantage * (settings.gamma * lambda_) ** behind
        advantages[n][t] = advantage
        critic = sum((settings.gamma * settings.lambda_critic) ** k * delta for k, delta in enumerate(deltas))
        targets[n][t] = critic + float(values[n][t])
    return list(zip(advantages, targets, strict=True))


def _deltas(
    trajectory: Trajectory,
    values: Sequence[Sequence[float]],
    chain: Sequence[tuple[int, int]],
    outcome: float,
    gamma: float,
) -> list[float]:
    """Temporal differences of a chain of trained tokens (segment, place), the outcome behind the last."""
    deltas = []
    for k, (n, t) in enumerate(chain):
        segment = trajectory.segments[n]
        reward, after = float(segment.rewards[t]), t + 1
        while after < len(segment) and not segment.mask[after]:  # an observation earns for the action before it
            reward += float(segment.rewards[after])
            after += 1
        last = k == len(chain) - 1
        following = 0.0 if last else float(values[chain[k + 1][0]][chain[k + 1][1]])
        deltas.append(reward + (outcome if last else 0.0) + gamma * following - float(values[n][t]))
    return deltas


def whiten(advantages: Sequence[float], floor: float) -> list[float]:
    """`credit.whiten`."""
    mean = sum(advantages) / len(advantages)
    deviation = (sum((a - mean) ** 2 for a in advantages) / len(advantages)) ** 0.5
    return [(a - mean) / max(deviation, floor) for a in advantages]
