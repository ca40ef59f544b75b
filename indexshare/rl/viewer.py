"""A page that shows trajectories token by token, coloured by what learning knows of each. One file, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from indexshare.rl.trajectory import Segment, Source, Trajectory
from indexshare.text.files import replacing

_HERE = Path(__file__).parent
_PAGE = _HERE / "viewer.html"


def write_page(
    file: Path, trajectories: Sequence[Trajectory], texts: Mapping[int, str], *, title: str = "Trajectories"
) -> None:
    """Write the page.

    Args:
        file: where to.
        trajectories: to be shown.
        texts: of token ids; an id without one is shown as a number.
        title: of the page.
    """
    page = _PAGE.read_text(encoding="utf-8")
    data = {
        "title": title,
        "sources": [source.name.lower() for source in Source],
        "trajectories": [_trajectory(each, texts) for each in trajectories],
    }
    # Inside a script element only `</` and `<!--` end or change it; JSON allows the same character as an escape.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    with replacing(file) as temporary:
        temporary.write_text(page.replace("__DATA__", text), encoding="utf-8")


def _trajectory(trajectory: Trajectory, texts: Mapping[int, str]) -> dict[str, Any]:
    return {
        "name": trajectory.name,
        "task": trajectory.task,
        "reward": round(trajectory.total_reward, 4),
        "status": trajectory.status,
        "trained": trajectory.trained,
        "details": {key: str(value) for key, value in trajectory.details.items()},
        "segments": [_segment(segment, texts) for segment in trajectory.segments],
    }


def _segment(segment: Segment, texts: Mapping[int, str]) -> dict[str, Any]:
    """Lists of one value per token; null where a number means nothing."""
    sampled = segment.versions >= 0
    columns: dict[str, list[float | None]] = {
        "logprob": _numbers(segment.logprobs, sampled),
        "version": _numbers(segment.versions, sampled),
        "reward": _numbers(segment.rewards, segment.rewards != 0),
    }
    columns |= {name: _numbers(values, segment.mask) for name, values in segment.columns.items()}
    return {
        "ids": segment.tokens.tolist(),
        "texts": [texts.get(token, f"⟨{token}⟩") for token in segment.tokens.tolist()],
        "source": segment.sources.tolist(),
        "mask": segment.mask.astype(int).tolist(),
        "columns": columns,
    }


def _numbers(values: np.ndarray, there: np.ndarray) -> list[float | None]:
    good = there & np.isfinite(values)
    return [round(float(value), 5) if known else None for value, known in zip(values, good, strict=True)]
