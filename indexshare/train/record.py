"""What a run leaves behind: the model of a stage with its tokenizer, and the record of how it was trained."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from indexshare.checkpoint.save import save_model
from indexshare.text.files import plural
from indexshare.train.recipe import PreparedData
from indexshare.train.trainer import Trainer


def describe_data(data: PreparedData) -> str:
    """One line about the data of a run."""
    s = data.summary
    return (
        f"{plural(s['train_files'], 'file')}, {s['train_tokens']:,} tokens to train on; "
        f"{plural(s['held_out_files'], 'file')}, "
        f"{s['held_out_tokens']:,} tokens held out; data {str(s['data_hash'])[:12]}"
    )


def export(trainer: Trainer, directory: Path) -> Path:
    """Write the model of the last stage with its tokenizer, and `training.json` beside them.

    The record of a run that started from another's model holds that one's record too, under `ancestor`.
    """
    save_model(trainer.model, directory)
    trainer.data.tokenizer.save(directory)
    record = {
        "recipe": trainer.recipe.name,
        "seed": trainer.recipe.seed,
        "steps": trainer.step,
        "tokens": trainer.tokens,
        "start": trainer.recipe.start,
        "ancestor": _training_record(trainer.recipe.start),
        "stages": [asdict(stage) for stage in trainer.recipe.stages[: trainer.stage_index + 1]],
        "text": asdict(trainer.recipe.text),
        "data": trainer.data.summary,
    }
    temporary = directory / "training.json.tmp"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, directory / "training.json")
    return directory


def _training_record(start: str | None) -> dict[str, Any] | None:
    """What `training.json` says of the model in a directory, if there is one."""
    file = None if start is None else Path(start) / "training.json"
    return None if file is None or not file.is_file() else json.loads(file.read_text(encoding="utf-8"))
