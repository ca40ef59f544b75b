"""The draft layer's steps in a round, operation by operation or in C++: slots in, logits at the anchors out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.cache.paged import PagedCache, PagedView
from indexshare.engine.request import Request
from indexshare.model.glm import GlmMoeDsa
from indexshare.step.native_draft import NativeDraft
from indexshare.step.native_step import MAX_ROWS


@dataclass(frozen=True)
class Slots:
    """Neighbouring slots of one request, from position `first` on, with the trunk's hidden states `[n, H]` there.

    `taken` says that the layer's cache has them already: they wait for a step that repeats.
    """

    request: Request
    first: int
    states: Tensor
    taken: bool = False

    @property
    def count(self) -> int:
        """Number of slots, n."""
        return len(self.states)

    @property
    def stop(self) -> int:
        """One past the last position."""
        return self.first + self.count

    @property
    def next_tokens(self) -> list[int]:
        """The token behind each slot."""
        return self.request.tokens[self.first + 1 : self.stop + 1]

    def split(self, count: int) -> tuple[Slots, Slots]:
        """The first `count` slots, and the others on their own memory."""
        later = Slots(self.request, self.first + count, self.states[count:].clone())
        return Slots(self.request, self.first, self.states[:count]), later

    def followed_by(self, later: Slots) -> Slots:
        """Those of both that are not taken; the later ones alone where the sequence began anew."""
        if self.taken or later.first != self.stop:
            return later
        return Slots(self.request, self.first, torch.cat([self.states, later.states]))


class LayerSteps(ABC):
    """One round after the other: `first`, then `later` with steps 2, 3, ...

    Args:
        model: with a draft layer, in evaluation mode.
        cache: with the layer's streams.
        full_attention_below: as in `GlmMoeDsa.trunk`.
    """

    def __init__(self, model: GlmMoeDsa, cache: PagedCache, full_attention_below: int) -> None:
        assert model.mtp is not None
        self._model, self._layer, self._cache = model, model.mtp, cache
        self._below = full_attention_below

    @abstractmethod
    def first(self, parts: Sequence[Slots]) -> Tensor:
        """Take in slots; logits `[n, V]` of step 1 at the last slot of each request, its anchor."""

    @abstractmethod
    def later(self, ids: Sequence[int], step: int) -> Tensor:
        """Logits `[n, V]` of a later step at the same anchors, behind the tokens just drafted."""

    def most_likely(self, parts: Sequence[Slots], steps: int) -> list[list[int]]:
        """The most likely token of each of `steps` steps behind the ones before it, by request."""
        drafts = [self.first(parts).argmax(1).tolist()]
        for step in range(2, steps + 1):
            drafts.append(self.later(drafts[-1], step).argmax(1).tolist())
        return drafts

    def store(self, parts: Sequence[Slots]) -> None:
        """Latents and index keys of slots that are no anchors."""
        parts = [part for part in parts if part.count]
        if parts:
            view = self._cache.view([p.request.table for p in parts], [(p.first, p.count) for p in parts])
            ids = [token for part in parts for token in part.next_tokens]
            self._layer.store(self._embed(ids), torch.cat([part.states for part in parts]), view)

    def _embed(self, ids: Sequence[int]) -> Tensor:
        embedded: Tensor = self._model.embed_tokens(torch.tensor(ids, device=self._cache.device))
        return embedded


class TorchSteps(LayerSteps):
    """With the modules of the model."""

    def first(self, parts: Sequence[Slots]) -> Tensor:
        divided = [part.split(part.count - 1) for part in parts]
        self.store([before for before, _ in divided])
        last = [slots for _, slots in divided]
        self._view = self._cache.view([s.request.table for s in last], [(s.first, 1) for s in last])
        embedded, states = self._embed([s.next_tokens[0] for s in last]), torch.cat([s.states for s in last])
        self._state = self._layer(embedded, states, self._view, full_attention_below=self._below)
        return self._model.logits(self._state.hidden)

    def later(self, ids: Sequence[int], step: int) -> Tensor:
        self._state = self._layer.step(self._embed(ids), self._state, self._view, step)
        return self._model.logits(self._state.hidden)


class NativeSteps(LayerSteps):
    """In one C++ call per step, as long as there are few rows; the other ones as `TorchSteps`."""

    def __init__(self, model: GlmMoeDsa, cache: PagedCache, full_attention_below: int) -> None:
        super().__init__(model, cache, full_attention_below)
        self._native = NativeDraft(model)
        self._torch = TorchSteps(model, cache, full_attention_below)

    def first(self, parts: Sequence[Slots]) -> Tensor:
        parts = self._few(parts)
        ids, states, view = self._rows_of(parts)
        self._in_torch = self._native.refusal(view) is not None
        if self._in_torch:
            return self._torch.first(parts)
        self._view = self._anchors(parts)
        self._rows = [span.stop - 1 for span in view.spans]
        hidden, logits = self._native.first(ids, states, view, wanted=self._rows, full_attention_below=self._below)
        self._hidden = hidden[self._rows]
        return logits

    def later(self, ids: Sequence[int], step: int) -> Tensor:
        if self._in_torch:
            return self._torch.later(ids, step)
        self._hidden, logits = self._native.later(
            ids, self._hidden, self._view, step=step, rows=self._rows, full_attention_below=self._below
        )
        self._rows = list(range(len(ids)))
        return logits

    def most_likely(self, parts: Sequence[Slots], steps: int) -> list[list[int]]:
        parts = self._few(parts)
        ids, states, view = self._rows_of(parts)
        if self._native.refusal(view) is not None:
            return self._torch.most_likely(parts, steps)
        anchors = self._anchors(parts)
        return self._native.round(ids, states, view, anchors, steps=steps, full_attention_below=self._below)

    def _few(self, parts: Sequence[Slots]) -> Sequence[Slots]:
        """The parts; or their anchors alone, all before them stored, where one native step does not take them all."""
        if sum(part.count for part in parts) <= MAX_ROWS:
            return parts
        divided = [part.split(part.count - 1) for part in parts]
        self.store([before for before, _ in divided])
        return [slots for _, slots in divided]

    def _rows_of(self, parts: Sequence[Slots]) -> tuple[list[int], Tensor, PagedView]:
        view = self._cache.view([p.request.table for p in parts], [(p.first, p.count) for p in parts])
        return [token for part in parts for token in part.next_tokens], torch.cat([p.states for p in parts]), view

    def _anchors(self, parts: Sequence[Slots]) -> PagedView:
        return self._cache.view([part.request.table for part in parts], [(part.stop - 1, 1) for part in parts])
