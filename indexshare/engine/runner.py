"""From scheduled rows to logits: packs a batch, runs the trunk on the paged cache, counts what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from indexshare.cache.paged import PagedCache
from indexshare.cache.view import BatchView
from indexshare.config import ModelConfig
from indexshare.engine.outputs import RequestStats
from indexshare.engine.scheduler import Row
from indexshare.model.forward_pass import attention_limit
from indexshare.model.glm import GlmMoeDsa
from indexshare.step.native_step import NativeStep


class Model(Protocol):
    """The part of `model.glm.GlmMoeDsa` that the engine calls."""

    config: ModelConfig

    def trunk(self, token_ids: Tensor, view: BatchView, *, full_attention_below: int = 0) -> Tensor:
        """Hidden rows [N, H] after the final norm, from ids int64 [N]."""

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [M, V] from hidden rows [M, H]."""


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
    def forward(self, rows: Sequence[Row]) -> Tensor | None:
        """Compute the rows and write their keys into the cache.

        Returns:
            float32 `[C, V]`, the next token's logits for each row with `completes`, in order; None when there
            is none, as in the middle of a prompt.
        """
        ids: list[int] = []
        ends: list[int] = []
        for row in rows:
            tokens = row.request.tokens
            if row.length == 1:
                ids.append(tokens[row.past])
            else:
                ids.extend(tokens[row.past : row.past + row.length])
            if row.completes:
                ends.append(len(ids) - 1)
        view = self.cache.view([row.request.table for row in rows], [(row.past, row.length) for row in rows])
        if self._native is not None and self._native.refusal(view) is None:
            _, logits = self._native(ids, view, full_attention_below=self.full_attention_below, wanted=ends)
            return logits if ends else None
        if self._native is not None:
            self._native.look_again()  # prompts are read with the weights as they are, and so is what follows them
        token_ids = torch.tensor(ids, dtype=torch.int64, device=self.cache.device)
        hidden = self.model.trunk(token_ids, view, full_attention_below=self.full_attention_below)
        if not ends:
            return None
        if len(ends) < len(ids):
            hidden = hidden[ends]
        return self.model.logits(hidden)

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
