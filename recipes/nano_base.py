"""`nano-base`: what `nano` grows from, trained from nothing on the running Python's standard library."""

from __future__ import annotations

from indexshare.config.presets import preset
from indexshare.config.share_plan import SharePlan
from indexshare.data.corpus import library_text
from indexshare.train.objectives import Balance, Draft, Indexer, NextToken
from indexshare.train.optim import OptimConfig, Schedule
from indexshare.train.recipe import Recipe
from indexshare.train.stages import Stage, index_share, indexer_warmup, pretrain, sparse

K = 1024
LONG_TEXT = {"text": 0.85, "retrieval": 0.15}
REACH = 32 * K  # rows are shorter than the context; stretched positions show the model its far distances
PEAK = OptimConfig(muon_lr=4e-3, adam_lr=4e-3)
LATE = OptimConfig(muon_lr=1.6e-3, adam_lr=1.6e-3, indexer_lr=3e-3)
LAST = OptimConfig(muon_lr=8e-4, adam_lr=8e-4, indexer_lr=1.5e-3)


def recipe() -> Recipe:
    """All stages, about an hour and a half on two cores."""
    model = preset("nano")
    return Recipe(name="nano-base", model=model, text=library_text(), stages=stages(model.share_plan), seed=0)


def stages(plan: SharePlan) -> tuple[Stage, ...]:
    """Dense pre-training, indexer warm-up, sparse with every layer Full, IndexShare."""
    warmup = indexer_warmup(
        tokens=512 * K,
        sequence_length=2 * K,
        batch_tokens=8 * K,
        micro_tokens=2 * K,
        position_reach=REACH,
        objectives=(Indexer(keys="all", stride=4, with_draft=True), Balance(rate=0.0)),
        optim=OptimConfig(indexer_lr=5e-3),
    )
    return (*dense_stages(), warmup, *sparse_stages(plan))


def dense_stages() -> tuple[Stage, ...]:
    """Short rows first: attention is cheap there, and most of the language is learned there."""
    return (
        pretrain(
            name="pretrain_short",
            tokens=3_000 * K,
            sequence_length=256,
            batch_tokens=8 * K,
            micro_tokens=2 * K,
            mixture={"text": 0.97, "retrieval": 0.03},
            objectives=(NextToken(), Balance(rate=1e-2)),
            optim=PEAK,
            schedule=Schedule(kind="constant", warmup=0.03),
        ),
        pretrain(
            name="pretrain",
            tokens=3_584 * K,
            sequence_length=1 * K,
            batch_tokens=8 * K,
            micro_tokens=2 * K,
            mixture={"text": 0.92, "retrieval": 0.08},
            position_reach=REACH,
            objectives=(NextToken(), Draft(after=0.5), Balance(rate=3e-3)),
            optim=PEAK,
            schedule=Schedule(kind="wsd", warmup=0.02, decay=0.5, final=0.4),
        ),
    )


def sparse_stages(plan: SharePlan) -> tuple[Stage, ...]:
    """Sharing is learned at 4K, where an update is cheap, before the context grows to 8K.

    There indexers learn from the attention of all layers they serve, over all earlier tokens at few queries: what a
    selection missed is never seen by a loss on the selection.
    """
    return (
        sparse(
            tokens=1_024 * K,
            sequence_length=2 * K,
            batch_tokens=8 * K,
            micro_tokens=2 * K,
            position_reach=REACH,
            mixture=LONG_TEXT,
            objectives=(NextToken(), Draft(), Indexer(stride=8), Balance()),
            optim=LATE,
            schedule=Schedule(kind="constant", warmup=0.05),
        ),
        index_share(
            plan,
            name="index_share_short",
            tokens=1_792 * K,
            sequence_length=4 * K,
            batch_tokens=8 * K,
            micro_tokens=4 * K,
            position_reach=REACH,
            mixture=LONG_TEXT,
            objectives=(NextToken(), Draft(), Indexer(keys="all", target="served", stride=16), Balance()),
            optim=LATE,
            schedule=Schedule(kind="cosine", warmup=0.03, final=0.5),
        ),
        index_share(
            plan,
            tokens=2_304 * K,
            sequence_length=8 * K,
            batch_tokens=16 * K,
            micro_tokens=8 * K,
            position_reach=REACH,
            mixture=LONG_TEXT,
            objectives=(NextToken(), Draft(steps=2), Indexer(keys="all", target="served", stride=32), Balance()),
            optim=LAST,
            schedule=Schedule(kind="cosine", warmup=0.0, final=0.05),
        ),
    )
