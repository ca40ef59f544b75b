"""What the engine asks of a drafter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from indexshare.engine.drafting.acceptance import DrawAfter, Proposal
from indexshare.engine.request import Request
from indexshare.engine.scheduler import Row

MOST_DRAFTS = 15  # with the token before them they are rows of one native step


@dataclass(frozen=True)
class Wish:
    """A sequence that drafts are wanted for: at most `most`, 1 or more; `draw_after` is how its tokens are drawn."""

    request: Request
    most: int
    draw_after: DrawAfter


class Drafter(ABC):
    """Proposes what may come next. What it proposes changes the speed alone.

    A proposal depends on the request's tokens, parameters and seed, never on what else runs.
    """

    name: str
    observes = False  # whether it wants to be shown the trunk's hidden states

    @abstractmethod
    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        """One proposal per wish, perhaps without tokens; all keys but that of the last token are in the cache."""

    def observe(self, rows: Sequence[Row], hidden: Tensor) -> None:  # noqa: B027  not everybody looks
        """After a step, its tokens taken: the trunk's hidden states `[N, H]` of the packed rows, rejected ones too.

        The keys of `request.computed` tokens are in the cache now; finished requests are left out of `rows` by length
        alone (their blocks are free).
        """
