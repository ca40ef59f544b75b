"""The files that come with a model and belong to it: tokenizer, chat template, how to generate.

They travel with a loaded model, as they are, so that what is saved again can be used again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from indexshare.config.generation import GENERATION_FILE, GENERATION_KEYS, GenerationDefaults
from indexshare.config.model import ModelConfig
from indexshare.text.tokenizer import TOKENIZER_FILES as READ_FILES

# Those that the tokenizer is made of here, and those that other programs make it of.
TOKENIZER_FILES = (*READ_FILES, "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt")
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def read_companions(directory: Path, overrides: Mapping[str, Any] | None = None) -> dict[str, bytes]:
    """Contents by name of the files in `directory` that belong to its model, besides configuration and weights.

    Ids in `overrides`, which replace those of `config.json`, replace those of the generation file too.

    Raises:
        ValueError: that file is damaged where an id is to be replaced.
    """
    names = (GENERATION_FILE, *TOKENIZER_FILES)
    found = {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}
    ids = {key: value for key, value in (overrides or {}).items() if key in _IDS}
    if ids and GENERATION_FILE in found:
        GenerationDefaults.from_bytes(found[GENERATION_FILE])  # says what is wrong with it
        found[GENERATION_FILE] = as_json(json.loads(found[GENERATION_FILE]) | ids)
    return found


def to_save(config: ModelConfig, companions: Mapping[str, bytes], tokenizer_dir: str | Path | None) -> dict[str, bytes]:
    """What to write beside configuration and weights.

    Args:
        config: of the model; it makes a generation file where none came with the model.
        companions: what came with the model.
        tokenizer_dir: a folder whose tokenizer takes the place of theirs.

    Raises:
        ValueError: the folder has no tokenizer files.
    """
    files = {GENERATION_FILE: as_json(_generation_config(config))} | dict(companions)
    if tokenizer_dir is None:
        return files
    found = read_companions(Path(tokenizer_dir))
    found.pop(GENERATION_FILE, None)
    if not found:
        raise ValueError(f"{tokenizer_dir} has no tokenizer files; expected at least {TOKENIZER_FILES[0]}")
    return {GENERATION_FILE: files[GENERATION_FILE]} | found


def as_json(data: dict[str, Any]) -> bytes:
    """An object as the files of a checkpoint spell it; half a character, which UTF-8 cannot hold, stays an escape."""
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _generation_config(config: ModelConfig) -> dict[str, Any]:
    ids, old = config.eos_token_id, {key: config.extra[key] for key in sorted(config.extra) if key in GENERATION_KEYS}
    return old | {
        "_from_model_config": True,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(ids) if isinstance(ids, tuple) else ids,
        "pad_token_id": config.pad_token_id,
    }
