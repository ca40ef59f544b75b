"""`pico`: a million parameters, for tests, drafting and reinforcement learning in seconds.

From nothing, through the stages of `nano`, on the standard library with a small vocabulary of its own: a quarter of an
hour of one core.
"""

from __future__ import annotations

from indexshare.config.presets import preset
from indexshare.config.share_plan import SharePlan
from indexshare.data.corpus import library_text
from indexshare.train.objectives import Balance, Draft, Indexer, NextToken
from indexshare.train.optim import OptimConfig, Schedule
from indexshare.train.recipe import Recipe
from indexshare.train.stages import Stage, index_share, indexer_warmup, pretrain, sparse

K = 1024
REACH = 8 * K  # the context; rows are shorter, stretched positions show the model its far distances
PEAK = OptimConfig(muon_lr=4e-3, adam_lr=1.6e-2)
LATE = OptimConfig(muon_lr=1.6e-3, adam_lr=6.4e-3, indexer_lr=3e-3)
# In which layer a small model finds out how to copy is a matter of luck, and what a Shared layer looks up, an indexer
# below must have been able to know. So the Full layers learn it alone before the others join (docs/LOG.md, 2026-11-21).
FIRST = 3
LONG_TEXT = {"text": 0.75, "lookup": 0.25}


def recipe() -> Recipe:
    """All stages; `--seed` gives others than this one."""
    model = preset("pico")
    stages = (*full_stages(), *sparse_stages(model.share_plan))
    return Recipe(name="pico", model=model, text=library_text(), stages=stages, seed=0, evaluate_every=250)


def full_stages() -> tuple[Stage, ...]:
    """Dense pre-training in short rows, then longer ones, and the indexers' warm-up."""
    return (
        pretrain(
            name="pretrain_short",
            layers=FIRST,
            tokens=4_000 * K,
            sequence_length=256,
            batch_tokens=2 * K,
            mixture={"text": 0.92, "lookup": 0.08},
            objectives=(NextToken(), Balance(rate=1e-2)),
            optim=PEAK,
            schedule=Schedule(kind="constant", warmup=0.02),
        ),
        pretrain(
            name="pretrain",
            tokens=2_000 * K,
            sequence_length=1 * K,
            batch_tokens=4 * K,
            micro_tokens=2 * K,
            mixture={"text": 0.85, "lookup": 0.15},
            position_reach=REACH,
            objectives=(NextToken(), Draft(after=0.5), Balance(rate=3e-3)),
            optim=PEAK,
            schedule=Schedule(kind="wsd", warmup=0.02, decay=0.6, final=0.3),
        ),
        indexer_warmup(
            tokens=512 * K,
            sequence_length=1 * K,
            batch_tokens=4 * K,
            micro_tokens=2 * K,
            position_reach=REACH,
            objectives=(Indexer(keys="all", stride=4, with_draft=True), Balance(rate=0.0)),
            optim=OptimConfig(indexer_lr=5e-3),
        ),
    )


def sparse_stages(plan: SharePlan) -> tuple[Stage, ...]:
    """Top-k attention, first with every layer Full, then shared."""
    return (
        sparse(
            tokens=512 * K,
            sequence_length=1 * K,
            batch_tokens=4 * K,
            micro_tokens=2 * K,
            position_reach=REACH,
            mixture=LONG_TEXT,
            objectives=(NextToken(), Draft(), Indexer(stride=4), Balance()),
            optim=LATE,
            schedule=Schedule(kind="constant", warmup=0.05),
        ),
        index_share(
            plan,
            tokens=1_280 * K,
            sequence_length=2 * K,
            batch_tokens=4 * K,
            micro_tokens=2 * K,
            position_reach=REACH,
            mixture=LONG_TEXT,
            objectives=(NextToken(), Draft(steps=2), Indexer(keys="all", target="served", stride=8), Balance()),
            optim=LATE,
            schedule=Schedule(kind="cosine", warmup=0.03, final=0.05),
        ),
    )
