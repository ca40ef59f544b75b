"""Windows of real code in which facts are planted and asked for in the forms that training may show."""

from __future__ import annotations

import random

import numpy as np

from indexshare.data.corpus import TokenCorpus
from indexshare.data.forms import TRAINED, File, ask_about
from indexshare.data.lookups import lookup_size
from indexshare.data.sources.base import Source, State
from indexshare.data.sources.neighbours import Neighbours
from indexshare.text.tokenizer import Tokenizer

_SHORTEST = 512  # tokens of a text; a window's shorter rest is filled with plain text
_TOKENS_PER_QUESTION = 320
_MOST_QUESTIONS = 24


class AskedForms(Source):
    """Texts of `data/forms`, of all sizes up to a whole window; resumed by the number of texts made."""

    def __init__(self, corpus: TokenCorpus, tokenizer: Tokenizer, *, seed: int) -> None:
        self._neighbours = Neighbours(corpus, tokenizer)
        self._tokenizer, self._seed, self._index = tokenizer, seed, 0

    def state(self) -> State:
        """Number of texts made."""
        return {"index": self._index}

    def restore(self, state: State) -> None:
        """Continue from a state."""
        self._index = state["index"]

    def window(self, length: int) -> np.ndarray:
        """The next window, int64 [length]."""
        ids: list[int] = []
        while len(ids) < length:
            key = f"forms/{self._seed}/{self._index}"
            self._index += 1
            ids += self._text(key, length - len(ids))
        return np.asarray(ids[:length], dtype=np.int64)

    def _text(self, key: str, room: int) -> list[int]:
        rng = random.Random(key)
        target = self._neighbours.choose(rng)
        if room < _SHORTEST:
            return self._neighbours.ids(target)[:room]
        size = min(room, max(_SHORTEST, lookup_size(rng, room)))
        forms = rng.choices(TRAINED, k=min(_MOST_QUESTIONS, max(1, size // _TOKENS_PER_QUESTION)))
        names = self._neighbours.before(target, rng, size)
        files = [File(self._neighbours.name(i), self._neighbours.text(i)) for i in [*names, target]]
        try:
            return ask_about(files, forms, self._tokenizer, tokens=size, key=key).ids
        except ValueError:  # a small vocabulary takes more tokens for so many questions: plain text then
            return self._neighbours.ids(target)[:size]
