"""One update of a model from a batch of trajectories, on the training room's steps."""

from __future__ import annotations

from collections.abc import Sequence

from indexshare.data.batch import Batch
from indexshare.model.glm import GlmMoeDsa
from indexshare.train.objectives import Objective
from indexshare.train.optim import MixedOptimizer
from indexshare.train.stages import Stage
from indexshare.train.steps import train_batch
from indexshare.train.workers import Workers


def update(
    model: GlmMoeDsa,
    optimizer: MixedOptimizer,
    batch: Batch,
    objectives: Sequence[Objective],
    *,
    factor: float,
    micro_tokens: int,
    workers: Workers,
) -> dict[str, float]:
    """Gradients over all micro-batches, then one step of the optimizer.

    Args:
        model: the policy, or a critic.
        optimizer: over what is trained of it.
        batch: rows of the update.
        objectives: what is learned.
        factor: of the learning rates.
        micro_tokens: most tokens of one pass.
        workers: run passes side by side.

    Returns:
        Metrics of the objectives and norms of gradients.

    Raises:
        FloatingPointError: one of them is not a number; nothing has been updated.
    """
    size = batch.rows * batch.length
    stage = Stage(
        name="rl", tokens=size, sequence_length=batch.length, batch_tokens=size, micro_tokens=micro_tokens,
        attention="sparse", objectives=tuple(objectives),
    )  # fmt: skip
    metrics = train_batch(model, optimizer, stage, batch, 0, workers)
    metrics |= optimizer.clip()
    bad = [f"{name} {value}" for name, value in metrics.items() if value != value or abs(value) == float("inf")]
    if bad:
        raise FloatingPointError(f"{', '.join(bad)} in an update; lower the learning rate and resume")
    optimizer.step(factor)
    return metrics
