"""Files of a corpus with others of their package before them."""

from __future__ import annotations

import random
from functools import cached_property

import numpy as np

from indexshare.data.corpus import TokenCorpus
from indexshare.text.tokenizer import Tokenizer, file_header


class Neighbours:
    """Draws files of a corpus, and what may stand before them."""

    def __init__(self, corpus: TokenCorpus, tokenizer: Tokenizer) -> None:
        self._corpus, self._tokenizer = corpus, tokenizer

    @cached_property
    def _package(self) -> dict[int, int]:
        """The index of each file's package."""
        return {int(i): number for number, members in enumerate(self._corpus.groups) for i in members}

    def choose(self, rng: random.Random) -> int:
        """A file, the longer the more often."""
        place = rng.randrange(len(self._corpus))
        return int(np.searchsorted(self._corpus.starts, place, side="right")) - 1

    def before(self, target: int, rng: random.Random, tokens: int) -> list[int]:
        """Other files of its package, so many tokens of them or a little more: those that it imports come last."""
        members = [int(i) for i in self._corpus.groups[self._package[target]] if i != target]
        rng.shuffle(members)
        imported = set(self._corpus.imports[target])
        members.sort(key=lambda i: i in imported)
        chosen, room = list[int](), tokens
        for i in reversed(members):
            if room <= 0:
                break
            chosen.append(i)
            room -= len(self._corpus.document(i))
        return chosen[::-1]

    def name(self, index: int) -> str:
        """The file's name."""
        return self._corpus.names[index]

    def ids(self, index: int) -> list[int]:
        """Token ids of a file with its header, and the end of text."""
        return list(map(int, self._corpus.document(index)))

    def text(self, index: int) -> str:
        """The text of a file without its header."""
        text = self._tokenizer.decode_bytes(self.ids(index), skip_special=True).decode("utf-8", errors="ignore")
        return text.removeprefix(file_header(self.name(index)))
