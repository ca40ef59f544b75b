"""The best of some plans on the same windows: all of them on a few, then fewer plans on more.

Losses are compared window by window. A plan leaves the race when it is worse than the leader by more than chance would
make of equal ones in one case in a thousand (paired, Student's t); what is left runs on. With few windows nobody
leaves.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from indexshare.config.share_plan import SharePlan
from indexshare.sharing.trial import Trial

_FIRST = 8  # windows before anybody may leave
_NORMAL = 3.09  # of the standard normal law: one in a thousand lies above


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What is known of one plan: mean loss over the windows that it ran on, and their number."""

    pattern: str
    loss: float
    windows: int


def race(
    trial: Trial, plans: Sequence[SharePlan], *, exact: bool = False, tolerance: float = 0.0
) -> tuple[SharePlan, list[Standing]]:
    """The plan with the lowest loss, the first one among equals, and how all of them stood.

    Args:
        trial: the windows.
        plans: at least one.
        exact: run every plan on every window.
        tolerance: part of the loss that does not matter: the race ends when nobody can be better by more.
    """
    alive, losses = list(plans), {plan.pattern: list[float]() for plan in plans}
    rounds = [trial.batches] if exact else _rounds(trial)
    done = 0
    for stop in rounds:
        for number in range(done, stop):
            for plan, values in zip(alive, trial.losses(alive, number), strict=True):
                losses[plan.pattern] += values
        done = stop
        alive = alive if exact else _survivors(alive, losses)
        if len(alive) == 1 or (tolerance > 0 and not exact and _settled(alive, losses, tolerance)):
            break
    winner = min(alive, key=lambda plan: statistics.fmean(losses[plan.pattern]))
    standings = [
        Standing(pattern=pattern, loss=statistics.fmean(values), windows=len(values))
        for pattern, values in losses.items()
    ]
    return winner, standings


def _rounds(trial: Trial) -> list[int]:
    """Batches that have been run after each round: windows double from an eighth of all, and at least `_FIRST`."""
    wanted, stops = max(_FIRST, trial.windows // 8), list[int]()
    for number in range(1, trial.batches + 1):
        if trial.windows_of(number) >= wanted:
            stops.append(number)
            wanted = 2 * trial.windows_of(number)
    return stops if stops and stops[-1] == trial.batches else [*stops, trial.batches]


def _survivors(alive: list[SharePlan], losses: dict[str, list[float]]) -> list[SharePlan]:
    best = losses[min(alive, key=lambda plan: statistics.fmean(losses[plan.pattern])).pattern]
    if len(best) < _FIRST:
        return alive
    return [plan for plan in alive if not _clearly_worse(losses[plan.pattern], best)]


def _settled(alive: list[SharePlan], losses: dict[str, list[float]], tolerance: float) -> bool:
    """Whether chance leaves nobody room to be better than the leader by more than the tolerance."""
    best = losses[min(alive, key=lambda plan: statistics.fmean(losses[plan.pattern])).pattern]
    if len(best) < _FIRST:
        return False
    room = tolerance * statistics.fmean(best)
    return all(_above(losses[plan.pattern], best) >= -room for plan in alive if losses[plan.pattern] is not best)


def _clearly_worse(values: Sequence[float], best: Sequence[float]) -> bool:
    """Whether a plan's losses lie above the leader's beyond chance."""
    return _above(values, best) > 0


def _above(values: Sequence[float], best: Sequence[float]) -> float:
    """What a plan's losses lie above the leader's, at the least that chance leaves."""
    apart = [a - b for a, b in zip(values, best, strict=True)]
    error = statistics.stdev(apart) / len(apart) ** 0.5
    return statistics.fmean(apart) - _limit(len(apart) - 1) * error


def _limit(freedom: int) -> float:
    """Student's t that one in a thousand lies above, from that of the normal law (Cornish and Fisher's series)."""
    z, n = _NORMAL, freedom
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3
