"""Before reinforcement: a policy learns from demonstrations until it sometimes succeeds by itself."""

from __future__ import annotations

from indexshare.model.glm import GlmMoeDsa
from indexshare.rl.batch import as_batch
from indexshare.rl.demonstrations import demonstration
from indexshare.rl.recipe import Recipe
from indexshare.rl.updates import update
from indexshare.train.objectives import Balance, NextToken
from indexshare.train.optim import MixedOptimizer
from indexshare.train.workers import Workers

_OBJECTIVES = (NextToken(), Balance())
FIRST = 1 << 40  # numbers of demonstrations begin here: other problems than those of the first rollouts


def demonstrate(recipe: Recipe, policy: GlmMoeDsa, optimizer: MixedOptimizer, step: int, workers: Workers) -> float:
    """One update of a policy on the demonstrations of a step; the mean cross-entropy of the expert's tokens."""
    assert recipe.warmup is not None
    rows, first = recipe.warmup.rows, FIRST + step * recipe.warmup.rows
    found = [demonstration(recipe.task, recipe.limits, first + row) for row in range(rows)]
    batch = as_batch([segment for each in found for segment in each.segments])
    metrics = update(
        policy, optimizer, batch, _OBJECTIVES, factor=1.0, micro_tokens=recipe.micro_tokens, workers=workers
    )
    return metrics["loss"]
