"""`nano-dsa`: nano's twin with every layer Full, from the same ancestor on the same tokens, for research on sharing.

It begins with the model that the run of `recipes/nano.py` keeps after its sparse stage.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from indexshare.config.share_plan import SharePlan
from indexshare.train.recipe import Recipe, load_recipe


def recipe() -> Recipe:
    """The stages in which nano learns to share, without sharing."""
    file = Path(__file__).with_name("nano.py")
    nano = load_recipe(file)
    stages = tuple(
        replace(stage, name=stage.name.replace("index_share", "sparse_long"), plan=None, indexer_target="own")
        for stage in nano.stages
        if stage.plan is not None
    )
    full = SharePlan.all_full(nano.model.num_hidden_layers)
    model = nano.model.replace(indexer_types=full.types)
    start = "runs/nano/stages/sparse"
    before = len(nano.stages) - len(stages)  # the same batches, row by row
    return replace(
        nano, name="nano-dsa", model=model, stages=stages, stages_before=before, start=start, ancestor=file, keep=()
    )
