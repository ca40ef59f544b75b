"""The sampler's rules in the plainest terms: Python floats, one row, no tensors. The fast one must agree."""

from __future__ import annotations

import math
from collections.abc import Sequence

from indexshare.engine.params import SamplingParams


def probabilities(logits: Sequence[float], params: SamplingParams) -> list[float]:
    """The distribution that a token is drawn from: V probabilities, 0 for filtered tokens.

    Temperature 0 puts everything on the largest logit, the lowest id among equals.
    """
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if params.temperature == 0:
        return [1.0 if token == ranked[0] else 0.0 for token in range(len(logits))]
    largest = logits[ranked[0]]
    weight = [math.exp((x - largest) / params.temperature) for x in logits]
    keep = ranked[: params.top_k] if params.top_k else ranked
    if params.top_p < 1:
        bound = params.top_p * math.fsum(weight[token] for token in keep)
        reached, length = 0.0, 0
        while length < len(keep) and reached < bound:
            reached += weight[keep[length]]
            length += 1
        keep = keep[:length]
    keep = [token for token in keep if weight[token] >= params.min_p * weight[ranked[0]]]
    total = math.fsum(weight[token] for token in keep)
    chosen = set(keep)
    return [weight[token] / total if token in chosen else 0.0 for token in range(len(logits))]


def choose(distribution: Sequence[float], number: float) -> int:
    """The token at which the cumulative distribution over ascending ids first exceeds `number` in [0, 1)."""
    reached, last = 0.0, 0
    for token, probability in enumerate(distribution):
        if probability > 0:
            reached += probability
            last = token
            if reached > number:
                return token
    return last
