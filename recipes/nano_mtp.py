"""The draft layer of `nano`, trained for rounds of several drafts: the trunk stands still, everything else is `nano`.

Cross-entropy first, then the end-to-end loss on total variation, on rows longer than the selection, so that later
steps learn with a selection that is not everything.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from indexshare.train.objectives import DraftOverlap
from indexshare.train.optim import OptimConfig, Schedule
from indexshare.train.recipe import Recipe, load_recipe
from indexshare.train.stages import index_share

K = 1024
STEPS = 4


def recipe() -> Recipe:
    """One stage that goes on from the shipped model."""
    nano = load_recipe(Path(__file__).with_name("nano.py"))
    stage = index_share(
        nano.model.share_plan,
        name="draft",
        tokens=1_536 * K,
        sequence_length=2 * K,
        batch_tokens=8 * K,
        micro_tokens=2 * K,
        mixture={"text": 1.0},
        objectives=(DraftOverlap(steps=STEPS, warm_up=0.3),),
        optim=OptimConfig(muon_lr=1.2e-3, adam_lr=1.2e-3),
        schedule=Schedule(kind="cosine", warmup=0.03, final=0.1),
    )
    return replace(nano, name="nano-mtp", stages=(stage,), start="nano", ancestor=None, keep=())
