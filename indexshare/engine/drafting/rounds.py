"""Rounds of drafting: who drafts for which request, how many tokens, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from torch import Tensor

from indexshare.engine.drafting.acceptance import Proposal
from indexshare.engine.drafting.base import Drafter, Wish
from indexshare.engine.drafting.policy import Policy
from indexshare.engine.request import Request, RequestState
from indexshare.engine.scheduler import Row


class Drafting:
    """What an engine does about drafts.

    Args:
        drafters: in order of preference, where the policy has none; the next one is asked where one has nothing to say.
        policy: how many tokens each may draft.
    """

    def __init__(self, drafters: Sequence[Drafter], policy: Policy) -> None:
        self._drafters = tuple(drafters)
        self._policy = policy
        self._observers = [drafter for drafter in self._drafters if drafter.observes]

    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        """A proposal for each wish, perhaps without tokens, put on its request as `drafts`."""
        found = [Proposal(()) for _ in wishes]
        orders = [self._order(wish.request, len(wishes)) for wish in wishes]
        for rank, drafter in product(range(len(self._drafters)), self._drafters):
            left = [n for n, order in enumerate(orders) if order[rank] is drafter and not found[n].tokens]
            asked = [(n, wish) for n in left if (wish := self._asked(wishes[n], drafter.name, len(wishes))).most > 0]
            if asked:
                for (n, _), proposal in zip(asked, self._made(drafter, [wish for _, wish in asked]), strict=True):
                    found[n] = proposal
        for wish, proposal in zip(wishes, found, strict=True):
            wish.request.drafts = proposal.tokens
        return found

    def _order(self, request: Request, sequences: int) -> list[Drafter]:
        if len(self._drafters) == 1:
            return list(self._drafters)
        return sorted(self._drafters, key=lambda drafter: -self._policy.rate(request, drafter.name, sequences))

    def _asked(self, wish: Wish, source: str, sequences: int) -> Wish:
        return replace(wish, most=min(wish.most, self._policy.count(wish.request, source, sequences)))

    def _made(self, drafter: Drafter, wishes: Sequence[Wish]) -> list[Proposal]:
        began = time.perf_counter()
        made = drafter.propose(wishes)
        took = time.perf_counter() - began
        drafts = sum(len(proposal.tokens) for proposal in made)
        if drafts:
            self._policy.timed_draft(drafter.name, drafts, took)
        for wish in wishes:
            wish.request.stats.draft_s += took
        return made

    def verified(self, request: Request, proposal: Proposal, accepted: int, seconds: float) -> None:
        """The first `accepted` drafts stayed; the step with them took `seconds`."""
        request.stats.add_round(len(proposal.tokens), accepted, seconds)
        self._policy.drafted(request, proposal.source, len(proposal.tokens), accepted)

    def computed(self, rows: Sequence[Row], hidden: Tensor, seconds: float) -> None:
        """A step is done and its tokens are taken: hidden states `[N, H]` of all its rows."""
        if all(row.own == 1 for row in rows):
            self._policy.timed(sum(row.length for row in rows), seconds)
        for drafter in self._observers:
            began = time.perf_counter()
            drafter.observe(rows, hidden)
            took = time.perf_counter() - began
            for row in rows:
                row.request.stats.draft_s += took


def may_draft(request: Request) -> int:
    """Most drafts that can be of use: the last token comes behind them, and none before the prompt is read."""
    if request.state is not RequestState.DECODE:
        return 0
    return max(0, request.params.max_tokens - request.num_outputs - 1)
