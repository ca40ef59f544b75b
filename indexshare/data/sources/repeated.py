"""Windows of text that repeat much of what stands far before: what repositories hold of retrieval by nature."""

from __future__ import annotations

import numpy as np

from indexshare.data.corpus import TokenCorpus
from indexshare.data.sources.base import Source, State
from indexshare.data.sources.packed import PackedText

_CHOICES = 4  # windows of which the one that repeats most is taken
_RUN = 6  # tokens that must be the same
_FAR = 8  # a repetition counts from an eighth of the window on


class RepeatedText(Source):
    """Of every four windows of `PackedText` the one with the most repetition from far away."""

    def __init__(self, corpus: TokenCorpus, *, seed: int) -> None:
        self._text = PackedText(corpus, seed=seed)

    def state(self) -> State:
        """That of the text below."""
        return self._text.state()

    def restore(self, state: State) -> None:
        """Continue from a state."""
        self._text.restore(state)

    def check_length(self, length: int) -> None:
        """Raise ValueError unless the corpus is long enough for windows of `length`."""
        self._text.check_length(length)

    def window(self, length: int) -> np.ndarray:
        """The next window, int64 [length]; ValueError when the corpus is too short."""
        return max((self._text.window(length) for _ in range(_CHOICES)), key=repeated_part)


def repeated_part(ids: np.ndarray) -> float:
    """Part of a window's runs of six tokens that stood there before, an eighth of the window or more away."""
    if len(ids) <= _RUN:
        return 0.0
    runs = np.lib.stride_tricks.sliding_window_view(ids, _RUN)
    _, first, which = np.unique(runs, axis=0, return_index=True, return_inverse=True)
    distance = np.arange(len(runs)) - first[which.reshape(-1)]
    return float((distance >= len(ids) // _FAR).mean())
