"""Windows in which a file has a gap that is filled behind it, with other files of its package before it."""

from __future__ import annotations

import random

import numpy as np

from indexshare.data.corpus import TokenCorpus
from indexshare.data.filling import choose_gap
from indexshare.data.lookups import lookup_size
from indexshare.data.sources.base import Source, State
from indexshare.data.sources.neighbours import Neighbours
from indexshare.text.fill import fill_tokens
from indexshare.text.tokenizer import Tokenizer, file_header

_SHORTEST = 128  # tokens of an example; a window's shorter rest is filled with plain text
_MOST_CHARACTERS_PER_TOKEN = 6
_SUFFIX = 4  # the text after the gap takes at most a quarter, as in `indexshare complete`
_AT_THE_END = 0.1  # of the gaps have nothing after them


class FilledGaps(Source):
    """Examples `suffix, prefix, middle` or `prefix, suffix, middle`, of all sizes up to a whole window.

    An example is laid out as `indexshare complete` does it: files of the package, then the file with the gap under its
    header. The middle ends with the end of text. Resumed by the number of examples made.

    Raises:
        ValueError: the tokenizer lacks the tokens.
    """

    def __init__(self, corpus: TokenCorpus, tokenizer: Tokenizer, *, seed: int) -> None:
        found = fill_tokens(tokenizer)
        if found is None:
            raise ValueError(
                "the tokenizer lacks the tokens to fill in the middle, <|code_prefix|>, <|code_suffix|> and "
                "<|code_middle|>; leave `fill` out of the mixture, or train a tokenizer with them"
            )
        self._tokens, self._tokenizer, self._seed = found, tokenizer, seed
        self._neighbours = Neighbours(corpus, tokenizer)
        self._index = 0

    def state(self) -> State:
        """Number of examples made."""
        return {"index": self._index}

    def restore(self, state: State) -> None:
        """Continue from a state."""
        self._index = state["index"]

    def window(self, length: int) -> np.ndarray:
        """The next window, int64 [length]."""
        ids: list[int] = []
        while len(ids) < length:
            rng = random.Random(f"fill/{self._seed}/{self._index}")
            self._index += 1
            ids += self._example(rng, length - len(ids))
        return np.asarray(ids[:length], dtype=np.int64)

    def _example(self, rng: random.Random, room: int) -> list[int]:
        """Other files and the one with the gap, at most `room` tokens."""
        target = self._neighbours.choose(rng)
        text = self._neighbours.text(target)
        if room < _SHORTEST or not text:
            return self._neighbours.ids(target)[:room]
        size = min(room, max(_SHORTEST, lookup_size(rng, room)))
        own = self._gap(rng, self._neighbours.name(target), text, size)
        before: list[int] = []
        spare = size - len(own)
        for index in reversed(self._neighbours.before(target, rng, spare) if spare >= _SHORTEST else []):
            ids = self._neighbours.ids(index)
            kept = ids if len(ids) <= spare else [*ids[: spare - 1], self._tokenizer.end_id]
            before = [*kept, *before]
            spare -= len(kept)
            if spare < 2:
                break
        return [*before, *own]

    def _gap(self, rng: random.Random, name: str, text: str, size: int) -> list[int]:
        """One file with a gap, at most `size` tokens: its beginning and its end are left out where it is too long."""
        start, stop = choose_gap(text, rng)
        limit = _MOST_CHARACTERS_PER_TOKEN * size
        parts = [file_header(name), text[:start][-limit:], text[start:stop], text[stop:][:limit]]
        header, before, middle, after = self._tokenizer.encode_batch(parts, parse_special=False)
        spare = size - len(header) - len(middle) - len(self._tokens.ids) - 1
        if spare < 2:  # a header or a middle of very long words: plain text
            return [*header, *before, *middle][:size]
        after = [] if rng.random() < _AT_THE_END else after[: spare // _SUFFIX]
        before = before[len(before) - min(len(before), spare - len(after)) :]
        prompt = self._tokens.prompt(before, after, suffix_first=rng.random() < 0.5)
        return [*header, *prompt, *middle, self._tokenizer.end_id]
