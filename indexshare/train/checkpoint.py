"""Training checkpoints: one file, written beside its name and renamed, the one before it kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
DAMAGED = "checkpoint.damaged.pt"


def save_checkpoint(directory: str | Path, state: dict[str, Any]) -> Path:
    """Write `state` as the newest checkpoint of a run.

    Args:
        directory: the run's folder.
        state: tensors, numbers, strings, and lists and dicts of them.

    Raises:
        OSError: it could not be written, for instance on a full disk; the checkpoint before it is untouched.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    temporary, final = folder / (NAME + ".tmp"), folder / NAME
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = f"the checkpoint before it is intact: {final}" if final.exists() else "there is none before it"
        # torch reports a full disk as a RuntimeError about its own archive
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the disk is full or refuses"
        raise OSError(f"could not write a checkpoint in {folder}: {reason}; free some space ({kept})") from error
    if final.exists():
        os.replace(final, folder / PREVIOUS)
    os.replace(temporary, final)
    return final


def load_checkpoint(directory: str | Path, say: Callable[[str], None] = lambda _: None) -> dict[str, Any] | None:
    """The newest readable checkpoint of a run, or None when there is none.

    A damaged newest one is renamed, so that the next checkpoint does not take the place of the one that could be read.

    Args:
        directory: the run's folder.
        say: told of a damaged checkpoint that was put aside, in a line for people.

    Raises:
        ValueError: checkpoints are there, but none can be read.
    """
    broken = []
    for path in (Path(directory) / NAME, Path(directory) / PREVIOUS):
        if not path.is_file():
            continue
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever zipfile and pickle raise on a damaged file
            broken.append(f"{path}: damaged or not a checkpoint, {type(error).__name__}")
            continue
        if broken:
            os.replace(Path(directory) / NAME, Path(directory) / DAMAGED)
            say(f"{broken[0]}; put aside as {DAMAGED}, and the one before it is used")
        return state
    if broken:
        raise ValueError(
            f"no checkpoint can be read ({'; '.join(broken)}); use another folder, or delete them to start again"
        )
    return None
