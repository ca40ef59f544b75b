"""Windows filled by generated texts: retrieval tasks and lookups."""

from __future__ import annotations

import random
from abc import abstractmethod
from functools import cached_property

import numpy as np

from indexshare.data.lookups import LOOKUPS, choose_lookup, lookup_size
from indexshare.data.sources.base import Source, State
from indexshare.data.tasks import retrieval_text
from indexshare.text.tokenizer import Tokenizer


class GeneratedTexts(Source):
    """Windows filled by whole generated texts and cut at their end; resumed by the number of texts made."""

    def __init__(self, tokenizer: Tokenizer, *, seed: int) -> None:
        self._tokenizer = tokenizer
        self._seed = seed
        self._index = 0

    @abstractmethod
    def _text(self, room: int) -> str:
        """The text of number `_index`, of at most about `room` tokens."""

    def state(self) -> State:
        """Number of texts made."""
        return {"index": self._index}

    def restore(self, state: State) -> None:
        """Continue from a state."""
        self._index = state["index"]

    def window(self, length: int) -> np.ndarray:
        """The next window, int64 [length]."""
        end = self._tokenizer.end_id
        ids: list[int] = []
        while len(ids) < length:
            text = self._text(length - len(ids))
            self._index += 1
            ids += [*self._tokenizer.encode(text, parse_special=False), end]
        return np.asarray(ids[:length], dtype=np.int64)


class RetrievalTasks(GeneratedTexts):
    """Generated retrieval text (`tasks.py`)."""

    def _text(self, room: int) -> str:
        return retrieval_text(self._seed, self._index, room)


class LookupTasks(GeneratedTexts):
    """Generated lookups (`lookups.py`), of all sizes up to a whole window.

    How many characters a task has room for is measured on a sample under the tokenizer, so that its questions, which
    stand last, are not cut off with a small vocabulary and the window is filled with a large one.
    """

    _SAMPLE = 6000  # characters
    _FILLED = 0.95  # of a text's room, since samples differ

    @cached_property
    def _density(self) -> dict[str, float]:
        """Characters per token of each task."""
        samples = {name: make(random.Random(name), self._SAMPLE) for name, make in LOOKUPS.items()}
        rows = self._tokenizer.encode_batch(list(samples.values()), parse_special=False)
        return {name: len(text) / len(row) for (name, text), row in zip(samples.items(), rows, strict=True)}

    def _text(self, room: int) -> str:
        name, rng = choose_lookup(self._seed, self._index)
        size = lookup_size(rng, room)
        return LOOKUPS[name](rng, int(self._FILLED * size * self._density[name]))
