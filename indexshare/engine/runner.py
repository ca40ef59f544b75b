"""From scheduled rows to logits: packs a batch, runs the trunk on the paged cache, counts what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from indexshare.cache.paged import PagedCache
from indexshare.cache.view import BatchView
from indexshare.config import ModelConfig
from indexshare.engine.outputs import RequestStats
from indexshare.engine.request import RequestState
from indexshare.engine.scheduler import Row
from indexshare.model.forward_pass import attention_limit
from indexshare.model.glm import GlmMoeDsa
from indexshare.step.native_step import MAX_ROWS, NativeStep

HEAD_ROWS = 16  # rows of a product with the head, or a multiple


class Model(Protocol):
    """The part of `model.glm.GlmMoeDsa` that the engine calls."""

    config: ModelConfig

    def trunk(self, token_ids: Tensor, view: BatchView, *, full_attention_below: int = 0) -> Tensor:
        """Hidden rows [N, H] after the final norm, from ids int64 [N]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [M, V] from hidden rows [M, H]."""


@dataclass(frozen=True)
class Computed:
    """What a step gives.

    Attributes:
        hidden: `[N, H]`, after the final norm, of all rows in order.
        logits: float32 `[C, V]` of what comes behind the rows with `completes`, in order: the next token's, then one
            row behind each draft.
    """

    hidden: Tensor
    logits: Tensor


class Runner:
    """Runs steps of a model on a cache.

    Args:
        model: in evaluation mode, on the cache's device.
        cache: its paged cache.
        full_attention_below: contexts up to this length are attended in full, as in `GlmMoeDsa.trunk`.
    """

    def __init__(self, model: Model, cache: PagedCache, *, full_attention_below: int = 0) -> None:
        self.model = model
        self.cache = cache
        self.full_attention_below = full_attention_below
        self._native = NativeStep(model) if isinstance(model, GlmMoeDsa) else None
        plan = model.config.share_plan
        self._full, self._shared = len(plan.full_layers), len(plan.shared_layers)
        self._topk = model.config.index_topk
        self._sparse_from = attention_limit(model.config, full_attention_below)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> Computed:
        """Compute the rows and write their keys into the cache, drafts too."""
        parts = [self._compute(part) for part in self._divided(rows)]
        if len(parts) == 1:
            return parts[0]
        return Computed(torch.cat([p.hidden for p in parts]), torch.cat([p.logits for p in parts]))

    def _divided(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Rows that are computed together.

        Sequences that are being written go through the native step on their own, as many rows at a time as it takes:
        its results do not depend on what is computed beside them, drafts or prompts, not in one bit.
        """
        writing = sum(row.request.state is RequestState.DECODE for row in rows)
        together = writing == len(rows) and sum(row.length for row in rows) <= MAX_ROWS
        if together or self._native is None or not 0 < writing <= MAX_ROWS or not self._native.knows(self.cache):
            return [list(rows)]
        parts, room = [list[Row]()], MAX_ROWS
        for row in rows[:writing]:
            if row.length > room:
                parts.append([])
                room = MAX_ROWS
            parts[-1].append(row)
            room -= row.length
        return [*parts, list(rows[writing:])] if writing < len(rows) else parts

    def _compute(self, rows: Sequence[Row]) -> Computed:
        ids: list[int] = []
        ends: list[int] = []
        for row in rows:
            tokens = row.request.tokens
            ids.extend(tokens[row.past : row.past + row.own])
            ids.extend(row.drafts)
            if row.completes:
                ends.extend(range(len(ids) - 1 - len(row.drafts), len(ids)))
        view = self.cache.view([row.request.table for row in rows], [(row.past, row.length) for row in rows])
        if self._native is not None and self._native.refusal(view) is None:
            return Computed(*self._native(ids, view, full_attention_below=self.full_attention_below, wanted=ends))
        if self._native is not None:
            self._native.look_again()  # prompts are read with the weights as they are, and so is what follows them
        token_ids = torch.tensor(ids, dtype=torch.int64, device=self.cache.device)
        hidden = self.model.trunk(token_ids, view, full_attention_below=self.full_attention_below)
        return Computed(hidden, self._logits(hidden, ends))

    def _logits(self, hidden: Tensor, ends: Sequence[int]) -> Tensor:
        if not ends:
            return torch.empty(0, self.model.config.vocab_size, device=hidden.device)
        # A whole number of rows for the head, the last one repeated: logits do not depend on how many are wanted then.
        padded = [*ends, *[ends[-1]] * (-len(ends) % HEAD_ROWS)]
        return self.model.logits(hidden[padded])[: len(ends)]

    def count(self, stats: RequestStats, past: int, length: int) -> None:
        """Add the work of the queries at positions `past .. past+length-1` to a request's statistics."""
        stop = past + length
        available = _sum_to(stop) - _sum_to(past)  # the query at position p has p + 1 keys
        # Queries with more keys than `_sparse_from` choose exactly `index_topk` of them; the rest attend all.
        first = min(max(past, self._sparse_from), stop)
        sparse = stop - first
        stats.tokens_available += available
        stats.tokens_attended += _sum_to(first) - _sum_to(past) + sparse * self._topk
        stats.index_passes_run += sparse * self._full
        stats.index_passes_saved += sparse * self._shared


def _sum_to(n: int) -> int:
    """1 + 2 + ... + n."""
    return n * (n + 1) // 2
