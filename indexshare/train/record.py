"""What a run leaves behind: the model of a stage with its tokenizer, and the record of how it was trained."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from indexshare.checkpoint.companions import read_companions
from indexshare.checkpoint.save import save_model
from indexshare.text.files import plural
from indexshare.text.fill import SETTING
from indexshare.text.tokenizer import Tokenizer
from indexshare.train.recipe import PreparedData, start_directory
from indexshare.train.trainer import Trainer


def describe_data(data: PreparedData) -> str:
    """One line about the data of a run."""
    s = data.summary
    return (
        f"{plural(s['train_files'], 'file')}, {s['train_tokens']:,} tokens to train on; "
        f"{plural(s['held_out_files'], 'file')}, "
        f"{s['held_out_tokens']:,} tokens held out; data {str(s['data_hash'])[:12]}"
    )


def _keep_companions(trainer: Trainer) -> None:
    """Let the files that came with the model that the run started from, such as how to generate, go with the result."""
    if trainer.recipe.start is None or trainer.model.companions:
        return
    with contextlib.suppress(ValueError):  # the start is gone: then without them
        trainer.model.companions = read_companions(start_directory(trainer.recipe))


def _saved_tokenizer(trainer: Trainer) -> Tokenizer:
    """The run's tokenizer, which says so where the model was trained to fill in the middle."""
    begun = trainer.recipe.stages[: trainer.stage_index + 1]
    tokenizer = trainer.data.tokenizer
    return tokenizer.with_setting(SETTING, True) if any(stage.weights.get("fill") for stage in begun) else tokenizer


def export(trainer: Trainer, directory: Path) -> Path:
    """Write the model of the last stage with its tokenizer, and `training.json` beside them.

    The record of a run that started from another's model holds that one's record too, under `ancestor`.
    """
    _keep_companions(trainer)
    save_model(trainer.model, directory, dtype="bfloat16" if trainer.recipe.dtype == "auto" else None)
    _saved_tokenizer(trainer).save(directory)
    record = {
        "recipe": trainer.recipe.name,
        "seed": trainer.recipe.seed,
        "dtype": trainer.dtype,
        "steps": trainer.step,
        "tokens": trainer.tokens,
        **trainer.history.record(),
        "text": asdict(trainer.recipe.text.absolute()),
        "data": trainer.data.summary,
    }
    temporary = directory / "training.json.tmp"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, directory / "training.json")
    return directory
