"""`nano-dsa`: nano's twin with every layer Full, from the same ancestor on the same tokens, for research on sharing.

It begins with the model that the run of `recipes/nano.py` keeps after its sparse stage.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from indexshare.config.share_plan import SharePlan
from indexshare.train.objectives import Indexer
from indexshare.train.recipe import Recipe, load_recipe
from indexshare.train.stages import Stage


def recipe() -> Recipe:
    """The stages in which nano learns to share, without sharing."""
    file = Path(__file__).with_name("nano.py")
    nano = load_recipe(file)
    stages = tuple(_unshared(stage) for stage in nano.stages if stage.plan is not None)
    full = SharePlan.all_full(nano.model.num_hidden_layers)
    model = nano.model.replace(indexer_types=full.types)
    start = "runs/nano/stages/sparse"
    before = len(nano.stages) - len(stages)  # the same batches, row by row
    return replace(
        nano, name="nano-dsa", model=model, stages=stages, stages_before=before, start=start, ancestor=file, keep=()
    )


def _unshared(stage: Stage) -> Stage:
    """The same stage with every layer Full: indexers learn from their own layer alone."""
    indexer = stage.objective(Indexer)
    assert indexer is not None
    full = replace(stage, name=stage.name.replace("index_share", "sparse_long"), plan=None)
    return full.learning(replace(indexer, target="own"))
