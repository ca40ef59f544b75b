"""Drafts from the text itself: what followed the last tokens where they occurred before. No tensors, no weights.

Code repeats itself, and a model with a context repeats the context. A lookup costs microseconds and needs no weights.
Source: Saxena, "Prompt Lookup Decoding" (2023); the chains of places are those of LZ77 compressors.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from indexshare.engine.drafting.acceptance import Proposal
from indexshare.engine.drafting.base import Drafter, Wish
from indexshare.engine.request import Request

LEAST = 3  # tokens that a match has at least; shorter ones are mostly chance
LONGEST = 32  # longer matches are as good as each other
PLACES = 128  # most recent places of the last `LEAST` tokens that are compared


class LookupIndex:
    """Where each run of `LEAST` tokens of a growing sequence stands, latest first.

    Args:
        least: tokens of a run, at least 1.
    """

    def __init__(self, least: int = LEAST) -> None:
        self.least = least
        self._known = 0  # runs that end before this position are entered
        self._latest: dict[tuple[int, ...], int] = {}  # end of the latest place of a run
        self._before: list[int] = []  # by end of a place: that of the one before it, -1 for none

    def longest(self, tokens: Sequence[int]) -> tuple[int, int]:
        """The longest suffix of `tokens` that occurred before, among the `PLACES` latest places of its last run.

        Args:
            tokens: the ones of the last call and more.

        Returns:
            Its length, `LONGEST` at most, and the position of what followed it; of equally long ones the latest. (0, 0)
            where even the last run is new.
        """
        self._enter(tokens)
        length, follows = 0, 0
        if len(tokens) < self.least:
            return length, follows
        end, left = self._latest.get(tuple(tokens[-self.least :]), -1), PLACES
        while end >= 0 and left and length < LONGEST:
            common = _common(tokens, end)
            if common > length:
                length, follows = common, end
            end, left = self._before[end], left - 1
        return length, follows

    def _enter(self, tokens: Sequence[int]) -> None:
        """Enter the runs that something follows: those that end before the last token."""
        self._before += [-1] * (len(tokens) - len(self._before))
        for end in range(max(self._known, self.least), len(tokens)):
            run = tuple(tokens[end - self.least : end])
            self._before[end] = self._latest.get(run, -1)
            self._latest[run] = end
        self._known = max(self._known, len(tokens))


def _common(tokens: Sequence[int], end: int) -> int:
    """How many tokens before `end` are those at the end of all, `LONGEST` at most."""
    length, most, last = 0, min(end, LONGEST), len(tokens)
    while length < most and tokens[end - 1 - length] == tokens[last - 1 - length]:
        length += 1
    return length


def continued(tokens: Sequence[int], follows: int, count: int) -> list[int]:
    """`count` tokens from position `follows` on; a text that ends there goes on with what was just copied."""
    found = list(tokens[follows : follows + count])
    while len(found) < count:  # the text repeats itself with a period of len(tokens) - follows
        found.append(found[len(found) - (len(tokens) - follows)])
    return found


class LookupDrafter(Drafter):
    """Names the tokens that followed the longest suffix that occurred before."""

    name = "lookup"

    def __init__(self) -> None:
        self._indexes: WeakKeyDictionary[Request, LookupIndex] = WeakKeyDictionary()

    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        """What followed, of each."""
        return [self._of(wish) for wish in wishes]

    def _of(self, wish: Wish) -> Proposal:
        tokens = wish.request.tokens
        length, follows = self._indexes.setdefault(wish.request, LookupIndex()).longest(tokens)
        return Proposal(continued(tokens, follows, wish.most) if length else [], None, self.name)
