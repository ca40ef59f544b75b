"""Windows over a corpus laid end to end, each token once per epoch."""

from __future__ import annotations

import numpy as np

from indexshare.data.corpus import TokenCorpus
from indexshare.data.sources.base import Source, State


class PackedText(Source):
    """Windows over a corpus laid end to end, package by package.

    Each epoch lays all tokens in one row in the corpus's `reading_order`, from a random offset, cuts the row in windows
    and takes them in random order. A window therefore holds neighbouring files of one package, imported ones before
    those that import them. Windows overlap by one token, so that no token is a target twice, and each is once, except
    for less than a window at either end of the row.
    """

    def __init__(self, corpus: TokenCorpus, *, seed: int) -> None:
        self._corpus = corpus
        self._seed = seed
        self._epoch, self._taken = 0, 0
        self._layout: tuple[int, int] | None = None

    def state(self) -> State:
        """Epoch, and windows taken in it."""
        return {"epoch": self._epoch, "taken": self._taken}

    def restore(self, state: State) -> None:
        """Continue from a state."""
        self._epoch, self._taken = state["epoch"], state["taken"]

    def window(self, length: int) -> np.ndarray:
        """The next window, int64 [length]; ValueError when the corpus is too short (`check_length`)."""
        self.check_length(length)
        stride = length - 1
        self._lay_out(stride)
        if self._taken >= len(self._windows):
            self._epoch, self._taken = self._epoch + 1, 0
            self._lay_out(stride)
        start = self._offset + int(self._windows[self._taken]) * stride
        self._taken += 1
        return self._read(start, length)

    def check_length(self, length: int) -> None:
        """Raise ValueError unless a window of `length` fits after any offset."""
        if len(self._corpus) < 2 * length - 1:
            raise ValueError(
                f"the corpus has {len(self._corpus)} of at least {2 * length - 1} tokens, too few for windows of "
                f"{length}; use a shorter sequence length or more text"
            )

    def _lay_out(self, stride: int) -> None:
        """Order of documents and windows in this epoch: a function of seed, epoch and stride."""
        if self._layout == (self._epoch, stride):
            return
        rng = np.random.default_rng([self._seed, self._epoch, stride])
        self._order = self._corpus.reading_order(rng)
        lengths = np.diff(self._corpus.starts)[self._order]
        self._ends = np.cumsum(lengths)
        self._offset = int(rng.integers(stride))
        self._windows = rng.permutation((len(self._corpus) - 1 - self._offset) // stride)
        self._layout = (self._epoch, stride)

    def _read(self, start: int, length: int) -> np.ndarray:
        parts, position = [], start
        which = int(np.searchsorted(self._ends, start, side="right"))
        while position < start + length:
            document = self._corpus.document(int(self._order[which]))
            first = position - (int(self._ends[which]) - len(document))
            piece = document[first : first + start + length - position]
            parts.append(piece)
            position += len(piece)
            which += 1
        return np.concatenate(parts).astype(np.int64)
