"""The sampler's rules in the plainest terms: Python floats, one row, no tensors. The fast one must agree."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from indexshare.engine.params import SamplingParams

_LARGEST = 3.4028234663852886e38  # of float32


def penalised(
    logits: Sequence[float], params: SamplingParams, prompt: Sequence[int], generated: Sequence[int]
) -> list[float]:
    """Logits after the penalties for tokens that occurred; every step is rounded to float32, overflow to its largest.

    Repetition counts prompt and generated tokens, as transformers does; presence and frequency count the generated ones
    alone, as OpenAI's service does: `logit - presence * (count > 0) - frequency * count`.
    """
    found = []
    repetition, presence, frequency = map(
        float32, (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    )
    for token, logit in enumerate(logits):
        count = generated.count(token)
        if count or token in prompt:
            logit = float32(logit / repetition if logit > 0 else logit * repetition)
        if count:
            logit = float32(float32(logit - presence) - float32(count * frequency))
        found.append(logit)
    return found


def float32(number: float) -> float:
    """The nearest float32 number, the largest one for what is larger."""
    number = max(-_LARGEST, min(_LARGEST, number))
    return float(struct.unpack("f", struct.pack("f", number))[0])


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
