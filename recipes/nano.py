"""`nano`: the small model that ships with the package, trained on the running Python's standard library."""

from __future__ import annotations

from indexshare.config.presets import preset
from indexshare.config.share_plan import SharePlan
from indexshare.train.corpus import STANDARD_LIBRARY, TextFolder
from indexshare.train.optim import OptimConfig, Schedule
from indexshare.train.recipe import Recipe
from indexshare.train.stages import Stage, index_share, indexer_warmup, pretrain, sparse

K = 1024
PEAK = OptimConfig(muon_lr=4e-3, adam_lr=4e-3, indexer_lr=4e-3)
LATE = OptimConfig(muon_lr=8e-4, adam_lr=8e-4, indexer_lr=2e-3)
FALL = Schedule(kind="cosine", warmup=0.05, final=0.05)


def recipe() -> Recipe:
    """All four stages, about an hour on two cores."""
    model = preset("nano")
    # Character tables and generated documentation are data, not code to learn from.
    text = TextFolder(
        path=STANDARD_LIBRARY,
        exclude=("site-packages", "__pycache__", "encodings", "pydoc_data", "lib2to3"),
    )
    return Recipe(name="nano", model=model, text=text, stages=stages(model.share_plan), seed=0)


def stages(plan: SharePlan) -> tuple[Stage, ...]:
    """Dense pre-training, indexer warm-up, sparse with every layer Full, IndexShare."""
    return (
        # Short rows first: attention is cheap there, and most of the language is learned there.
        pretrain(
            name="pretrain_short",
            tokens=3_000 * K,
            sequence_length=256,
            batch_tokens=8 * K,
            micro_tokens=2 * K,
            mixture={"text": 0.97, "retrieval": 0.03},
            optim=PEAK,
            schedule=Schedule(kind="constant", warmup=0.03),
            balance_rate=1e-2,
        ),
        pretrain(
            name="pretrain",
            tokens=3_000 * K,
            sequence_length=1 * K,
            batch_tokens=8 * K,
            micro_tokens=2 * K,
            mixture={"text": 0.92, "retrieval": 0.08},
            mtp_weight=0.3,
            mtp_from=0.5,
            optim=PEAK,
            schedule=Schedule(kind="wsd", warmup=0.02, decay=0.6, final=0.15),
            balance_rate=3e-3,
        ),
        indexer_warmup(
            tokens=192 * K,
            sequence_length=1 * K,
            batch_tokens=8 * K,
            micro_tokens=2 * K,
            optim=OptimConfig(indexer_lr=5e-3),
        ),
        sparse(
            tokens=256 * K,
            sequence_length=2 * K,
            batch_tokens=8 * K,
            micro_tokens=2 * K,
            indexer_stride=4,
            mixture={"text": 0.85, "retrieval": 0.15},
            mtp_weight=0.3,
            optim=LATE,
            schedule=Schedule(kind="constant", warmup=0.1),
        ),
        index_share(
            plan,
            tokens=512 * K,
            sequence_length=8 * K,
            batch_tokens=16 * K,
            micro_tokens=8 * K,
            indexer_stride=4,
            mixture={"text": 0.85, "retrieval": 0.15},
            mtp_weight=0.3,
            optim=LATE,
            schedule=FALL,
        ),
    )
