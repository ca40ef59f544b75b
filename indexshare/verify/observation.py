"""What another program says of a text, in the form in which it is compared: log-probabilities, and more if shown."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LayerStates:
    """One layer on a text of S tokens.

    Attributes:
        before, between, after: float32 `[S, H]`: what enters the layer, what leaves its attention and enters its
            feed-forward part, and what leaves that, each with what it was added to.
        chosen: bool `[S, S]`: which tokens (columns) each query attends to.
    """

    before: Tensor
    between: Tensor
    after: Tensor
    chosen: Tensor


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One text under another program.

    Attributes:
        program: its name, for messages.
        token_ids: the text, S tokens.
        logprobs: float32 `[S - 1]`, log-probability of each token after the first given those before it.
        rows: float32 `[S, V]`, log-probabilities of every token at every position, where the program shows them.
        layers: each layer, where it can be looked into.
        draft_rows: float32 `[S - 1, V]`, the draft layer's first step; row i predicts token i + 2.
        draft_logprobs: float32 `[S - 2]`, what that step gave each token after the second, where no rows are shown.
        precision: type the program computes in; decides which differences are rounding.
    """

    program: str
    token_ids: tuple[int, ...]
    logprobs: Tensor
    rows: Tensor | None = None
    layers: tuple[LayerStates, ...] | None = None
    draft_rows: Tensor | None = None
    draft_logprobs: Tensor | None = None
    precision: str = "float32"

    @property
    def shows_draft(self) -> bool:
        """Whether predictions of the draft layer are given."""
        return self.draft_rows is not None or self.draft_logprobs is not None

    @classmethod
    def of_logits(cls, program: str, token_ids: Sequence[int], logits: Tensor, **more: Any) -> Observation:
        """From logits `[S, V]`."""
        rows = logits.float().log_softmax(-1)
        return cls(
            program=program, token_ids=tuple(token_ids), logprobs=of_tokens(rows, token_ids), rows=rows, **more
        )  # fmt: skip


def of_tokens(rows: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Log-probability of each token after the first, `[S - 1]`, from rows `[S, V]`.

    Rows of the draft layer, `[S - 1, V]`, go with the tokens after the first: `of_tokens(draft_rows, token_ids[1:])`.
    """
    following = torch.tensor(token_ids[1:], dtype=torch.int64)
    return rows[:-1].gather(1, following[:, None])[:, 0]


def read_logprobs(path: Path) -> Observation:
    """An observation from a JSON file: `{"token_ids": [...], "logprobs": [...], "precision": "bfloat16"}`.

    `logprobs` has one natural logarithm for each token; the first, which nothing precedes, may be null or left out.
    `draft_logprobs`, if there, has what the draft layer's first step gave each token; the first two, of which it says
    nothing, may be null or left out. Other keys are passed over.

    Raises:
        ValueError: the file does not hold that; the text says what is wrong.
        OSError: it cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(data, dict) or not {"token_ids", "logprobs"} <= set(data):
        raise ValueError(f'{path}: expected an object with "token_ids" and "logprobs"')
    ids, logprobs = data["token_ids"], data["logprobs"]
    if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids) or len(ids) < 2:
        raise ValueError(f"{path}: token_ids must be a list of at least two ids")
    drafted = data.get("draft_logprobs")
    if drafted is not None and len(ids) < 3:
        raise ValueError(f"{path}: draft_logprobs need a text of at least three tokens; it has {len(ids)}")
    return Observation(
        program=str(path), token_ids=tuple(ids), logprobs=check_logprobs(logprobs, len(ids), str(path)),
        draft_logprobs=None if drafted is None else check_logprobs(drafted, len(ids), str(path), unknown=2),
        precision=str(data.get("precision", "float32")),
    )  # fmt: skip


def check_logprobs(values: Any, count: int, where: str, *, unknown: int = 1) -> Tensor:
    """Log-probabilities `[count - unknown]` from a list with or without entries for the first `unknown` tokens.

    Raises:
        ValueError: not finite numbers of zero or less, or another number of them.
    """
    first, expected = {1: "the first", 2: "the first two"}[unknown], count - unknown
    what = f"{where}: expected {expected} {'log-probabilities' if unknown == 1 else 'draft_logprobs'}"
    if not isinstance(values, list) or len(values) not in (expected, count):
        got = f"{len(values)} values" if isinstance(values, list) else f"{values!r:.40}"
        raise ValueError(f"{what}, one for each token but {first}, and got {got}")
    values = values[-expected:]
    for number, value in enumerate(values, unknown):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value > 1e-4:
            raise ValueError(
                f"{what}, finite numbers of 0 or less; the one of token {number} (counted from 0) is {value!r:.40}"
            )
    return torch.tensor(values, dtype=torch.float32)
