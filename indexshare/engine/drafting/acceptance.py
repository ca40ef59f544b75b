"""Which drafted tokens stay: exact rules, so that drafts change the speed and never the law of the text.

A drafter says what comes next in one of two ways.

* It names tokens. Then the token that plain decoding would take is drawn at every place, with plain decoding's number,
  and the draft stays where it is that token. It stays with probability p(draft), which is what the general rule below
  says for a law q that puts everything on one token; and the text is the plain one, token for token.
* It draws them, from a law q of its own. Then a draft y stays with probability min(1, p(y) / q(y)); the first one that
  does not stay gives way to a token of the law max(0, p - q), normalised, and the rest are dropped. Source: Leviathan
  et al., "Fast Inference from Transformers via Speculative Decoding" (ICML 2023), theorem 3.5 and appendix A.1.

Behind drafts that all stay comes one more token, drawn as plain decoding would. p and q are what a token is drawn from:
penalties, temperature and filters included. Temperature 0 has one token to draw, so its drafts are of the first kind.

Every number comes from `uniform(seed, position, stream)`, so it depends on nothing else; the streams of a draft, of its
acceptance and of what takes its place are independent. A position may be drafted again with the same number after an
earlier draft was rejected: nothing that the first one decided is part of the text. `acceptance_reference` says the same
in the plainest terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.engine.sampler import Draw, kept, sample, uniform

ACCEPT, DRAFT = 1, 2  # streams of `uniform` beside that of plain draws, 0


@dataclass(frozen=True)
class Proposal:
    """Drafts of the next tokens of a sequence.

    `laws` are what the tokens were drawn from, float64 `[V]` each, or None where the drafter names tokens.
    """

    tokens: Sequence[int]
    laws: Sequence[Tensor] | None = None
    source: str = ""

    def first(self, count: int) -> Proposal:
        """The first `count` of them."""
        return Proposal(self.tokens[:count], None if self.laws is None else self.laws[:count], self.source)


DrawAfter = Callable[[Sequence[int]], Draw]
"""How the token is drawn that comes after what the sequence holds and some tokens more."""


def law(logits: Tensor, draw: Draw) -> Tensor:
    """What a token is drawn from, float64 `[V]`: logits float32 `[V]` with bias, penalties, temperature and filters."""
    logits = draw.shaped(logits)
    if draw.params.greedy:
        return torch.zeros_like(logits, dtype=torch.float64).index_fill_(0, logits.argmax().view(1), 1.0)
    ids, weights = kept(logits, draw.params)
    weights = weights / weights.sum()
    return weights if ids is None else torch.zeros_like(logits, dtype=torch.float64).index_copy_(0, ids, weights)


def draft_token(law: Tensor, draw: Draw) -> int:
    """A token of a drafter's law float64 `[V]`."""
    return int(_inverted(law[None], _numbers(law, [uniform(draw.seed, draw.position, DRAFT)])))


def settle(target: Tensor, draft: Tensor, tokens: Tensor, accept: Tensor, redraw: Tensor) -> tuple[Tensor, Tensor]:
    """Accept drafts or replace them, a case per row.

    Args:
        target: float64 `[N, V]`, the law p that the text has.
        draft: float64 `[N, V]`, the law q.
        tokens: int64 `[N]`, drawn from q.
        accept, redraw: float64 `[N]` in [0, 1), numbers that decide.

    Returns:
        bool `[N]`, whether the draft stays, and int64 `[N]`, the token that takes its place if it does not.
    """
    p, q = target.gather(1, tokens[:, None])[:, 0], draft.gather(1, tokens[:, None])[:, 0]
    rest = (target - draft).clamp_min_(0)
    # Nothing is left where p = q, and a draft is rejected there only by rounding.
    rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, target)
    return accept * q < p, _inverted(rest, redraw)


def verify(logits: Tensor, proposal: Proposal, draw_after: DrawAfter) -> list[int]:
    """The tokens that a proposal leads to: the drafts that stay, and one more.

    Args:
        logits: float32 `[len(proposal.tokens) + 1, V]`, finite: of the next token, then after each draft. With one row
            less, nothing comes behind drafts that all stay.
        proposal: the drafts.
        draw_after: how a token is drawn behind the accepted ones.
    """
    taken: list[int] = []
    while len(taken) < len(logits):
        place = len(taken)
        draw = draw_after(taken)
        drafted = proposal.tokens[place] if place < len(proposal.tokens) else None
        if drafted is None or proposal.laws is None:
            taken += sample(logits[place : place + 1], [draw])
        else:
            taken.append(_accepted_or_replaced(logits[place], drafted, proposal.laws[place], draw))
        if taken[-1] != drafted:
            break
    return taken


def _accepted_or_replaced(logits: Tensor, drafted: int, draft: Tensor, draw: Draw) -> int:
    """One place of `verify`. What takes a draft's place is another token: max(0, p - q) is 0 at a rejected draft."""
    target = law(logits, draw)
    tokens = torch.tensor([drafted], device=target.device)
    numbers = [_numbers(target, [uniform(draw.seed, draw.position, stream)]) for stream in (ACCEPT, 0)]
    stays, other = settle(target[None], draft[None], tokens, *numbers)
    return drafted if bool(stays) else int(other)


def _numbers(like: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)


def _inverted(weights: Tensor, numbers: Tensor) -> Tensor:
    """Per row of `[N, V]`, the id at which the cumulative sum first exceeds `number * total`, int64 `[N]`."""
    cumulative = weights.cumsum(1)
    total = cumulative[:, -1:].contiguous()
    at = torch.searchsorted(cumulative, numbers[:, None] * total, right=True)
    # A product rounded up to the total is above every entry: the last id of the law then, not one behind it.
    return torch.minimum(at, torch.searchsorted(cumulative, total))[:, 0]
