"""Which layers should keep their indexer: search by the model's own loss, nothing trained.

Source: IndexCache (arXiv 2603.12201), section 3 and appendix C: greedy search, pipeline blocks, similarity. Beyond it:
swaps that take back a choice, and a beam.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from indexshare.config.arguments import shown
from indexshare.config.share_plan import SharePlan
from indexshare.sharing.race import Standing, race
from indexshare.sharing.trial import Trial, changed

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One decision: the plan from here on, its mean loss over all windows, and how the candidates stood."""

    plan: SharePlan
    loss: float
    standings: tuple[Standing, ...] = ()


def layers_to_keep(keep: str, layers: int) -> int:
    """Full layers that `1/4` or `12` means for so many layers; a part is rounded up, as IndexCache does.

    Raises:
        ValueError: neither, or not between 1 and `layers`.
    """
    try:
        wanted = Fraction(keep.strip())
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"--keep is {shown(keep)}; expected a part such as 1/4, or a number of layers") from None
    part = "/" in keep or "." in keep
    number = math.ceil(wanted * layers) if part else int(wanted)
    if not 1 <= number <= layers or (part and wanted > 1):
        raise ValueError(f"--keep is {shown(keep)}; expected a part up to 1, or 1 to {layers} layers")
    return number


def uniform(layers: int, keep: int) -> SharePlan:
    """`keep` Full layers at equal distances, the first of them layer 0."""
    full = {number * layers // keep for number in range(keep)}
    return SharePlan.from_pattern("".join("F" if layer in full else "S" for layer in range(layers)))


def block_starts(layers: int, blocks: int) -> tuple[int, ...]:
    """First layers of contiguous blocks of nearly equal size (pipeline stages).

    Raises:
        ValueError: more blocks than layers, or none.
    """
    if not 1 <= blocks <= layers:
        raise ValueError(f"--blocks is {blocks}; expected 1 to {layers}, the model's layers")
    return tuple(number * layers // blocks for number in range(blocks))


def greedy(
    trial: Trial, keep: int, *, blocks: int = 1, exact: bool = False, tolerance: float = 0.0, tell: Tell | None = None
) -> list[Step]:
    """Make one layer Shared after the other, each time the one whose sharing costs least, until `keep` are Full.

    With several blocks (which start at Full layers) one layer of each is decided in a step, block after block.

    Raises:
        ValueError: the plan at the start has fewer Full layers, or fewer than there are blocks.
    """
    plan, starts = trial.base, block_starts(trial.base.num_layers, blocks)
    check_start(plan, keep, starts)
    edges = [*starts, plan.num_layers]
    steps = [Step(plan=plan, loss=trial.loss(plan))]
    while len(plan.full_layers) > keep:
        for start, stop in pairwise(edges):
            free = [layer for layer in plan.full_layers if start < layer < stop]
            if not free or len(plan.full_layers) <= keep:
                continue
            plan, standings = race(trial, [changed(plan, layer) for layer in free], exact=exact, tolerance=tolerance)
            steps.append(_commit(trial, plan, standings, tell))
    return steps


def _commit(trial: Trial, plan: SharePlan, standings: Sequence[Standing], tell: Tell | None) -> Step:
    trial.rebase(plan)
    step = Step(plan=plan, loss=trial.loss(plan), standings=tuple(standings))
    if tell is not None:
        tell(f"{plan.pattern}  loss {step.loss:.5f}")
    return step


def check_start(plan: SharePlan, keep: int, starts: Sequence[int] = (0,)) -> None:
    """Refuse (ValueError) a search with nothing to decide, or that cannot end."""
    full = len(plan.full_layers)
    if full < 2:
        raise ValueError(
            f"the model's plan {plan.pattern} has one indexer, so there is nothing to search; take a checkpoint "
            "with an indexer in every layer"
        )
    if not len(starts) <= keep < full:
        raise ValueError(
            f"--keep is {keep} layers; expected {len(starts)} to {full - 1}: the model has {full} indexers"
        )
    shared = [layer for layer in starts if not plan.is_full(layer)]
    if shared:
        raise ValueError(
            f"block starts {shared} have no indexer in the model's plan {plan.pattern}; use other --blocks"
        )


def refine(
    trial: Trial, step: Step, *, available: Sequence[int], pinned: Sequence[int] = (0,), exact: bool = False,
    tolerance: float = 0.0, tell: Tell | None = None,
) -> list[Step]:  # fmt: skip
    """Exchange a Full layer for a Shared one as long as that lowers the loss; the steps that did.

    Args:
        trial: the windows.
        step: where to begin.
        available: layers that have an indexer.
        pinned: layers that stay Full.
    """
    steps = [step]
    while True:
        plan = steps[-1].plan
        fixed = set(pinned)
        pairs = [
            (give, take)
            for give in plan.full_layers
            for take in plan.shared_layers
            if give not in fixed and take in available
        ]
        if not pairs:
            return steps[1:]
        trial.rebase(plan)
        winner, standings = race(trial, [changed(plan, *pair) for pair in pairs], exact=exact, tolerance=tolerance)
        if trial.loss(winner) >= steps[-1].loss:
            return steps[1:]
        steps.append(_commit(trial, winner, standings, tell))


def beam(trial: Trial, keep: int, *, width: int, tell: Tell | None = None) -> list[Step]:
    """As `greedy`, but the `width` best plans of each size go on; the path of sizes to the best one at the end.

    Raises:
        ValueError: as `greedy`.
    """
    start = trial.base
    check_start(start, keep)
    steps = [Step(plan=start, loss=trial.loss(start))]
    members = [start]
    for _ in range(len(start.full_layers) - keep):
        found: dict[str, tuple[float, SharePlan]] = {}
        for member in members:
            trial.rebase(member)
            for layer in member.full_layers[1:]:
                plan = changed(member, layer)
                found[plan.pattern] = (trial.loss(plan), plan)
        best = sorted(found.values(), key=lambda pair: pair[0])[:width]
        members = [plan for _, plan in best]
        standings = tuple(Standing(pattern=p.pattern, loss=v, windows=trial.windows) for v, p in found.values())
        steps.append(Step(plan=best[0][1], loss=best[0][0], standings=standings))
        if tell is not None:
            tell(f"{best[0][1].pattern}  loss {best[0][0]:.5f}")
    return steps


def plain_evaluations(full: int, keep: int, layers: int, windows: int) -> int:
    """Layer evaluations of the published algorithm: every candidate of every step, whole, over all windows."""
    candidates = sum(range(keep, full))
    return (candidates + 1) * layers * windows
