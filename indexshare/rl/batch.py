"""Trajectories as rows of a batch: a row for each segment, with what the objectives look for beside its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from indexshare.cache.view import InFlightView
from indexshare.data.batch import Batch
from indexshare.model.glm import GlmMoeDsa
from indexshare.rl.trajectory import Segment

Columns = Sequence[Mapping[str, np.ndarray]]


def as_batch(segments: Sequence[Segment], columns: Columns | None = None) -> Batch:
    """Rows of the longest segment's length and one more, so that every token, the last one too, is an input.

    Args:
        segments: one row each, filled up with id 0 behind its end, where nothing is trained.
        columns: more about each token of each segment, float [T] by name; the same names for all.

    Returns:
        A batch whose `extra` has `behaviour` (recorded log-probabilities) and the columns, float32 [B, S + 1].
    """
    width = max(len(segment) for segment in segments) + 1
    rows = columns or [{}] * len(segments)
    known = [{"behaviour": segment.logprobs, **row} for segment, row in zip(segments, rows, strict=True)]
    return Batch(
        tokens=_filled([segment.tokens for segment in segments], width, np.int64),
        mask=_filled([segment.mask for segment in segments], width, np.bool_),
        extra={name: _filled([row[name] for row in known], width, np.float32) for name in known[0]},
    )


def _filled(rows: Sequence[np.ndarray], width: int, kind: type) -> Tensor:
    full: np.ndarray = np.zeros((len(rows), width), dtype=kind)
    for row, values in zip(full, rows, strict=True):
        row[: len(values)] = values
    return torch.from_numpy(full)


def trained_rows(batch: Batch) -> Tensor:
    """Rows of the hidden states that predict trained tokens, bool [B * S]."""
    assert batch.mask is not None
    return batch.mask[:, 1:].reshape(-1)


def column(batch: Batch, name: str) -> Tensor:
    """An extra column at the targets, [B * S]."""
    return batch.extra[name][:, 1:].reshape(-1)


@torch.no_grad()
def per_token(
    model: GlmMoeDsa, batch: Batch, function: Callable[[Tensor, Tensor], Tensor], *, micro_rows: int
) -> Tensor:
    """What a function says of every token: float32 [B, S + 1], where place t holds what stands before token t.

    Args:
        model: its trunk gives hidden states, by its own selection.
        batch: from `as_batch`.
        function: of hidden states [N, H] and the tokens [N] that follow them, one number each.
        micro_rows: rows at a time.
    """
    parts = []
    for part in batch.split(micro_rows):
        hidden = model.trunk(part.inputs, InFlightView([part.length] * part.rows, part.tokens.device))
        found = function(hidden, part.tokens[:, 1:].reshape(-1)).view(part.rows, part.length)
        parts.append(torch.nn.functional.pad(found.float(), (1, 0)))
    return torch.cat(parts)
