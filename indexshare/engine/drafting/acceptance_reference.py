"""The rules of `acceptance` in the plainest terms: Python floats, lists, no tensors. The fast ones must agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from indexshare.engine.sampler_reference import choose

Law = Sequence[float]


def residual(p: Law, q: Law) -> list[float]:
    """max(0, p - q), normalised; p itself where nothing is left."""
    rest = [max(0.0, a - b) for a, b in zip(p, q, strict=True)]
    total = sum(rest)
    return [x / total for x in rest] if total > 0 else list(p)


def settle(p: Law, q: Law, token: int, accept: float, redraw: float) -> int:
    """The token that is emitted where `token` was drafted: itself with probability min(1, p / q), else of the rest."""
    return token if accept * q[token] < p[token] else choose(residual(p, q), redraw)


def emitted(p: Law, q: Law) -> list[float]:
    """The law of the emitted token, by adding up what can happen: it is p."""
    accepted = [min(a, b) for a, b in zip(p, q, strict=True)]  # q(y) * min(1, p(y) / q(y))
    rejected = 1.0 - sum(accepted)
    return [a + rejected * r for a, r in zip(accepted, residual(p, q), strict=True)]


def verify(
    laws: Callable[[Sequence[int]], Law],
    drafted: Sequence[int],
    drafts: Sequence[Law],
    numbers: Callable[[int, str], float],
) -> list[int]:
    """The tokens that drafts lead to.

    Args:
        laws: of the next token behind some tokens.
        drafted: the drafts.
        drafts: the law of each.
        numbers: in [0, 1), by place, for "accept" and "draw".
    """
    taken: list[int] = []
    for place, token in enumerate(drafted):
        p = laws(taken)
        taken.append(settle(p, drafts[place], token, numbers(place, "accept"), numbers(place, "draw")))
        if taken[-1] != token:
            return taken
    return [*taken, choose(laws(taken), numbers(len(taken), "draw"))]
