"""Penalties for tokens that occurred before: what a sequence holds, and what that does to its logits.

`sampler_reference.penalised` says the same in the plainest terms. Arithmetic is float32, as in transformers and in the
servers whose settings people bring along, so that greedy choices agree with theirs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from indexshare.engine.params import SamplingParams


class SeenTokens:
    """Which ids a growing sequence holds, and how often each was generated.

    Args:
        params: with a penalty; another one needs none of this.
        prompt_len: tokens of the sequence that belong to the prompt.
    """

    def __init__(self, params: SamplingParams, prompt_len: int) -> None:
        self._params = params
        self._prompt_len = prompt_len
        self._known = 0
        self._ids: dict[int, int] = {}  # each id's place in `_places` and `_counts`
        self._places = torch.empty(0, dtype=torch.int64)
        self._counts = torch.empty(0, dtype=torch.float32)

    def copy(self) -> SeenTokens:
        """The same tokens, to be updated on its own."""
        other = SeenTokens(self._params, self._prompt_len)
        other._known, other._ids = self._known, dict(self._ids)
        other._places, other._counts = self._places, self._counts.clone()
        return other

    def update(self, tokens: Sequence[int]) -> None:
        """Take in the tokens that came since the last call; `tokens` are the prompt and all generated ones."""
        new = [token for token in dict.fromkeys(tokens[self._known :]) if token not in self._ids]
        if new:
            self._ids.update(zip(new, range(len(self._ids), len(self._ids) + len(new)), strict=True))
            self._places = torch.cat([self._places, torch.tensor(new, dtype=torch.int64)])
            self._counts = torch.cat([self._counts, torch.zeros(len(new))])
        for token in tokens[max(self._known, self._prompt_len) :]:
            self._counts[self._ids[token]] += 1
        self._known = len(tokens)

    def penalise(self, logits: Tensor) -> Tensor:
        """Logits float32 `[V]` of the next token with the penalties in; the input is left alone."""
        places, counts = self._places.to(logits.device), self._counts.to(logits.device)
        repetition, presence, frequency = torch.tensor(
            [self._params.repetition_penalty, self._params.presence_penalty, self._params.frequency_penalty],
            device=logits.device,
        )
        chosen = logits[places]
        chosen = _finite(torch.where(chosen > 0, chosen / repetition, chosen * repetition))
        if self._params.presence_penalty or self._params.frequency_penalty:
            lower = _finite(_finite(chosen - presence) - counts * frequency)
            chosen = torch.where(counts > 0, lower, chosen)
        return logits.index_put((places,), chosen)


def _finite(logits: Tensor) -> Tensor:
    """Overflow to the largest float32 number, so that what is compared stays a number."""
    largest = torch.finfo(torch.float32).max
    return logits.clamp(-largest, largest)
