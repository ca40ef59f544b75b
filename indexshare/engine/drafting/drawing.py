"""From the logits of a step to tokens: one for each sequence, or several where drafts were right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from indexshare.engine.drafting.acceptance import DrawAfter, Proposal, verify
from indexshare.engine.outputs import TokenLogprobs
from indexshare.engine.sampler import non_finite_rows, sample, token_logprobs

NO_DRAFTS = Proposal(())


@dataclass(frozen=True)
class Case:
    """A sequence whose next token is due.

    Attributes:
        proposal: the drafts behind which there are logits, perhaps none.
        draw_after: how its tokens are drawn.
        logprobs: how many most likely tokens to report, None for none.
    """

    proposal: Proposal
    draw_after: DrawAfter
    logprobs: int | None = None

    @property
    def rows(self) -> int:
        """Rows of logits."""
        return len(self.proposal.tokens) + 1


@dataclass
class Drawn:
    """Tokens, and log-probabilities if wanted; `broken` says that the logits behind these tokens are not finite."""

    tokens: list[int] = field(default_factory=list)
    logprobs: Sequence[TokenLogprobs | None] = ()
    broken: bool = False


def draw_cases(logits: Tensor, cases: Sequence[Case]) -> list[Drawn]:
    """The tokens of each case.

    Args:
        logits: float32 `[sum of the cases' rows, V]`, in order.
        cases: each depends on its own rows alone. Logits behind a draft that is wrong matter to nobody.
    """
    bad = set(non_finite_rows(logits))
    firsts, row = [], 0
    for case in cases:
        firsts.append(row)
        row += case.rows
    found = [Drawn() for _ in cases]
    _draw_plain(logits, cases, firsts, found, bad)
    for case, first, drawn in zip(cases, firsts, found, strict=True):
        good = next((place for place in range(case.rows) if first + place in bad), case.rows)
        if case.proposal.tokens:
            drawn.tokens = verify(logits[first : first + good], case.proposal, case.draw_after)
        all_stay = drawn.tokens == list(case.proposal.tokens[:good])
        drawn.broken = good < case.rows and all_stay
        count = len(drawn.tokens)
        drawn.logprobs = [None] * count
        if case.logprobs is not None:
            drawn.logprobs = token_logprobs(logits[first : first + count], drawn.tokens, [case.logprobs] * count)
    return found


def _draw_plain(
    logits: Tensor, cases: Sequence[Case], firsts: Sequence[int], found: Sequence[Drawn], bad: set[int]
) -> None:
    """The tokens of the cases without drafts, all at once."""
    plain = [n for n, case in enumerate(cases) if not case.proposal.tokens and firsts[n] not in bad]
    if not plain:
        return
    rows = logits if len(plain) == len(logits) else logits[[firsts[n] for n in plain]]
    for n, token in zip(plain, sample(rows, [cases[n].draw_after(()) for n in plain]), strict=True):
        found[n].tokens = [token]
