"""Drafts from the model's own draft layer: `model/draft/mtp.py` beside the trunk's cache.

After every step the layer takes in what the trunk computed: tokens that stay get their latents and index keys from the
trunk's hidden states, those of a prompt too. A round of drafting is anchored at the last of them: the layer's
indexer runs once, for the anchor, and all later steps reuse its selection, read only what the trunk's states made, and
write nothing. One rule at all lengths of context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from indexshare.cache.paged import PagedCache
from indexshare.engine.drafting.acceptance import Proposal, draft_token, law
from indexshare.engine.drafting.base import Drafter, Wish
from indexshare.engine.drafting.layer_steps import NativeSteps, Slots
from indexshare.engine.request import Request, RequestState
from indexshare.engine.sampler import non_finite_rows
from indexshare.engine.scheduler import Row
from indexshare.model.glm import GlmMoeDsa

MOST_WAITING = 32  # slots of a request


class LayerDrafter(Drafter):
    """Draws tokens from what the draft layer says, under the request's own temperature, filters and penalties.

    Hidden states of tokens that are being written wait until drafts are wanted: a text that is not drafted for costs
    little.

    Args:
        model: with a draft layer, in evaluation mode.
        cache: with the layer's streams (`PagedCache(draft=True)`).
        full_attention_below: as in `GlmMoeDsa.trunk`.

    Raises:
        ValueError: the model has no draft layer.
    """

    name = "mtp"
    observes = True

    def __init__(self, model: GlmMoeDsa, cache: PagedCache, *, full_attention_below: int = 0) -> None:
        if model.mtp is None:
            raise ValueError("the model has no draft layer (num_nextn_predict_layers is 0); draft by lookup")
        self._steps = NativeSteps(model, cache, full_attention_below)
        self._waiting: WeakKeyDictionary[Request, Slots] = WeakKeyDictionary()

    @torch.inference_mode()
    def observe(self, rows: Sequence[Row], hidden: Tensor) -> None:
        """Store the slots of a prompt, let those that may be anchors wait; arguments as in `Drafter`."""
        ready, start = list[Slots](), 0
        for row in rows:
            request, count = row.request, row.request.computed - row.past
            if not request.finished:
                ready += self._kept(Slots(request, row.past, hidden[start : start + count]))
            start += row.length
        self._steps.store(ready)

    def _kept(self, new: Slots) -> list[Slots]:
        """Let what may be an anchor wait, and a few before it; returns what is to be stored now."""
        request = new.request
        if request.state is not RequestState.DECODE:
            self._waiting.pop(request, None)
            return [new]
        waiting = self._waiting.get(request)
        slots = new if waiting is None else waiting.followed_by(new)
        before, self._waiting[request] = slots.split(slots.count - 1 if slots.count > MOST_WAITING else 0)
        return [before]

    @torch.no_grad()  # in inference mode, tokens seen so far would become tensors that cannot be changed outside of it
    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        """Draft from the anchors of the requests, all in one batch."""
        ready = [n for n, wish in enumerate(wishes) if self._is_complete(wish.request)]
        found = [Proposal(()) for _ in wishes]
        if ready:
            for n, proposal in zip(ready, self._draft([wishes[n] for n in ready]), strict=True):
                found[n] = proposal
        return found

    def _is_complete(self, request: Request) -> bool:
        """Whether the slots that wait reach up to the last one with a next token."""
        waiting = self._waiting.get(request)
        return waiting is not None and waiting.stop == request.computed == len(request.tokens) - 1

    def _draft(self, wishes: Sequence[Wish]) -> list[Proposal]:
        parts = [self._waiting[wish.request] for wish in wishes]
        if all(wish.request.params.greedy and not wish.request.params.penalised for wish in wishes):
            found = self._most_likely(wishes, parts)
        else:
            found = self._drawn(wishes, parts)
        for part in parts:  # the anchor alone stays, for a round that is repeated after a step that failed
            self._waiting[part.request] = replace(part.split(part.count - 1)[1], taken=True)
        return found

    def _most_likely(self, wishes: Sequence[Wish], parts: Sequence[Slots]) -> list[Proposal]:
        steps = self._steps.most_likely(parts, max(wish.most for wish in wishes))
        return [
            Proposal(tuple(tokens[: wish.most]), None, self.name)
            for wish, tokens in zip(wishes, zip(*steps, strict=True), strict=True)
        ]

    def _drawn(self, wishes: Sequence[Wish], parts: Sequence[Slots]) -> list[Proposal]:
        drafting = [_Drafting(wish) for wish in wishes]
        for step in range(1, max(wish.most for wish in wishes) + 1):
            logits = self._steps.first(parts) if step == 1 else self._steps.later([d.last for d in drafting], step)
            bad = set(non_finite_rows(logits))
            for row, each in enumerate(drafting):
                each.take(logits[row], finite=row not in bad)
        return [each.proposal for each in drafting]


class _Drafting:
    """The drafts of one request in the making."""

    def __init__(self, wish: Wish) -> None:
        self._wish = wish
        self._tokens: list[int] = []
        self._laws: list[Tensor] = []
        self._open = True

    @property
    def last(self) -> int:
        """The token that the next step reads; any, once nothing is added."""
        return self._tokens[-1] if self._tokens else 0

    @property
    def proposal(self) -> Proposal:
        """All drafts so far; one with nothing left to chance names its tokens."""
        return Proposal(tuple(self._tokens), tuple(self._laws) or None, LayerDrafter.name)

    def take(self, logits: Tensor, *, finite: bool) -> None:
        """Draw one more from logits `[V]`, unless there are enough or the layer broke down."""
        self._open = self._open and finite and len(self._tokens) < self._wish.most
        if not self._open:
            return
        draw = self._wish.draw_after(self._tokens)
        if draw.params.greedy:
            self._tokens.append(int(draw.shaped(logits).argmax()))
        else:
            self._laws.append(law(logits, draw))
            self._tokens.append(draft_token(self._laws[-1], draw))
