"""`tiny`: the same four stages at a size that trains in seconds; for tests, and to see a run from end to end."""

from __future__ import annotations

from pathlib import Path

import indexshare
from indexshare.config.presets import preset
from indexshare.data.corpus import TextFolder
from indexshare.train.objectives import Balance, Draft, Indexer, NextToken
from indexshare.train.optim import OptimConfig
from indexshare.train.recipe import Recipe
from indexshare.train.stages import index_share, indexer_warmup, pretrain, sparse


def recipe() -> Recipe:
    """A minute on one core; the text is this package's own source."""
    model = preset("tiny").replace(vocab_size=512)
    common = {"batch_tokens": 256, "micro_tokens": 128, "optim": OptimConfig(muon_lr=1e-2, adam_lr=1e-2)}
    full = (NextToken(), Draft(after=0.5), Balance())
    selected = (NextToken(), Draft(steps=2), Indexer(), Balance())
    shared = (NextToken(), Draft(), Indexer(), Balance())
    stages = (
        pretrain(tokens=8 * 256, sequence_length=32, objectives=full, **common),
        indexer_warmup(tokens=4 * 256, sequence_length=64, **common),
        sparse(tokens=4 * 256, sequence_length=64, objectives=selected, **common),
        index_share(model.share_plan, tokens=4 * 256, sequence_length=128, objectives=shared, **common),
    )
    source = Path(indexshare.__file__).parent
    text = TextFolder(path=str(source), held_out=0.2)
    return Recipe(
        name="tiny", model=model, text=text, stages=stages, held_out_windows=4, evaluate_every=4, dtype="float32"
    )
