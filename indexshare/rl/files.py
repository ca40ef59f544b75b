"""Trajectories as files: one safetensors file of tensors laid end to end, with everything else as JSON in its header.

Written under another name and renamed, so that a file is whole or not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from indexshare.rl.trajectory import Segment, Trajectory
from indexshare.text.files import replacing

FORMAT = "indexshare trajectories 1"
_TENSORS = ("tokens", "sources", "mask", "logprobs", "versions", "rewards")
_COLUMN, _SELECTION = "column.", "selection."


def write_trajectories(
    file: str | Path, trajectories: Sequence[Trajectory], texts: Mapping[int, str] | None = None
) -> Path:
    """Write trajectories to one file.

    Args:
        file: ends in `.safetensors` by custom; its folder is made.
        trajectories: at least one.
        texts: of the token ids that occur, for people who look at the file without a tokenizer.

    Raises:
        ValueError: nothing to write.
    """
    path = Path(file)
    segments = [segment for trajectory in trajectories for segment in trajectory.segments]
    if not segments:
        raise ValueError(f"no trajectories to write to {path}")
    tensors = {name: np.concatenate([getattr(s, name) for s in segments]) for name in _TENSORS}
    for column in sorted({name for s in segments for name in s.columns}):
        parts = [s.columns.get(column, np.full(len(s), np.nan, dtype=np.float32)) for s in segments]
        tensors[_COLUMN + column] = np.concatenate(parts)
    for number, segment in enumerate(segments):
        if segment.selection is not None:
            tensors[f"{_SELECTION}{number}"] = np.ascontiguousarray(segment.selection, dtype=np.int32)
    header = {
        "format": FORMAT,
        "trajectories": json.dumps([_record(trajectory) for trajectory in trajectories]),
        "texts": json.dumps({str(key): text for key, text in (texts or {}).items()}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=header)
    return path


def _record(trajectory: Trajectory) -> dict[str, Any]:
    lengths = [len(segment) for segment in trajectory.segments]
    names = ("name", "task", "reward", "status", "group")
    return {name: getattr(trajectory, name) for name in names} | {
        "lengths": lengths,
        "details": dict(trajectory.details),
    }


def read_trajectories(file: str | Path) -> tuple[list[Trajectory], dict[int, str]]:
    """Trajectories of a file, and the texts of token ids that it holds.

    Raises:
        ValueError: no such file, a damaged one, or a file of another kind.
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a file of trajectories, such as rollouts/000001.safetensors")
    try:
        with safe_open(path, framework="numpy") as stored:
            header = stored.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"{path} is a safetensors file of another kind; expected one of trajectories")
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a dict
        records = json.loads(header["trajectories"])
        texts = {int(key): text for key, text in json.loads(header.get("texts", "{}")).items()}
        return _trajectories(records, tensors), texts
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged or no file of trajectories: {error}") from error


def _trajectories(records: list[dict[str, Any]], tensors: dict[str, np.ndarray]) -> list[Trajectory]:
    found, start, number = list[Trajectory](), 0, 0
    for record in records:
        segments = []
        for length in record.pop("lengths"):
            segments.append(_segment(tensors, slice(start, start + length), number))
            start, number = start + length, number + 1
        found.append(Trajectory(segments=tuple(segments), **record))
    return found


def _segment(tensors: dict[str, np.ndarray], rows: slice, number: int) -> Segment:
    columns = {n.removeprefix(_COLUMN): t[rows] for n, t in tensors.items() if n.startswith(_COLUMN)}
    return Segment(
        **{name: tensors[name][rows] for name in _TENSORS},
        selection=tensors.get(f"{_SELECTION}{number}"),
        columns={name: values for name, values in columns.items() if not np.isnan(values).all()},
    )
