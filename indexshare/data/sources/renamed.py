"""Windows of text in which names are new, so that they can be known from the context alone."""

from __future__ import annotations

import random
from functools import cached_property

import numpy as np

from indexshare.data.corpus import TokenCorpus
from indexshare.data.renaming import Renamer
from indexshare.data.sources.base import Source, State
from indexshare.data.sources.packed import PackedText
from indexshare.data.splitting import package_of
from indexshare.text.tokenizer import Tokenizer


class RenamedText(Source):
    """Windows of `PackedText` in which the names that a window defines are replaced by new ones (`renaming.py`)."""

    _SPARE = 8  # an eighth more than wanted is read: new names may take fewer tokens

    def __init__(self, corpus: TokenCorpus, tokenizer: Tokenizer, *, seed: int) -> None:
        self._corpus, self._tokenizer, self._seed = corpus, tokenizer, seed
        self._text = PackedText(corpus, seed=seed)
        self._index = 0

    def state(self) -> State:
        """That of the text below, and the number of windows made."""
        return self._text.state() | {"index": self._index}

    def restore(self, state: State) -> None:
        """Continue from a state."""
        self._index = state["index"]
        self._text.restore({key: value for key, value in state.items() if key != "index"})

    def check_length(self, length: int) -> None:
        """Raise ValueError unless the corpus is long enough for windows of `length`."""
        self._text.check_length(self._wider(length))

    def _wider(self, length: int) -> int:
        return length + length // self._SPARE

    @cached_property
    def _renamer(self) -> Renamer:
        documents = range(self._corpus.num_documents)
        texts = ((package_of(self._corpus.names[i]), self._decode(self._corpus.document(i))) for i in documents)
        return Renamer(texts)

    def _decode(self, ids: np.ndarray) -> str:
        text = self._tokenizer.decode_bytes(ids.tolist(), skip_special=True)
        return text.decode("utf-8", errors="ignore")  # a window may cut a letter

    def window(self, length: int) -> np.ndarray:
        """The next window, int64 [length]; ValueError when the corpus is too short."""
        end, ids = self._tokenizer.end_id, list[int]()
        while len(ids) < length:
            before = self._text.window(self._wider(length))
            texts = [self._decode(part) for part in np.split(before, np.flatnonzero(before == end) + 1)]
            rng = random.Random(f"renaming/{self._seed}/{self._index}")
            self._index += 1
            rows = self._tokenizer.encode_batch(self._renamer.rename(texts, rng), parse_special=False)
            for row in rows[:-1]:
                ids += [*row, end]
            ids += rows[-1]
        return np.asarray(ids[:length], dtype=np.int64)
