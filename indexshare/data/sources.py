"""Packed, resumable batches: sources of fixed-length windows, and their mixture.

A batch is int64 [B, S + 1]: inputs are the first S columns, targets the last S. The state of a stream is a plain
record of integers; a stream built the same way and given that state yields exactly the same batches.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from indexshare.data.corpus import TokenCorpus
from indexshare.data.lookups import LOOKUPS, choose_lookup, lookup_size
from indexshare.data.renaming import Renamer
from indexshare.data.splitting import package_of
from indexshare.data.tasks import retrieval_text
from indexshare.text.tokenizer import Tokenizer

State = dict[str, int]


_STRETCHED_PARTS = 3  # of a row, with a jump between each two


def stretched_positions(rows: int, length: int, reach: int, *, seed: Sequence[int]) -> torch.Tensor:
    """Rotary positions that spread short rows over a long context, so that far distances are seen in training.

    Each row is cut at random places; the parts after a cut are moved on by random distances. How far the row reaches
    is log-uniform between `length` and `reach`, so that all scales occur. (Positional skip-wise training, Zhu et al.,
    "PoSE", ICLR 2024, section 3, with three parts and log-uniform reach.)

    Args:
        rows, length: of the batch.
        reach: most positions that a row spans; at least `length`.
        seed: the result is a function of it and the sizes.

    Returns:
        int64 [rows, length], strictly increasing along each row, from 0 to below `reach`.

    Raises:
        ValueError: `reach` is less than `length`.
    """
    if reach < length:
        raise ValueError(f"reach is {reach}; rows of {length} tokens need at least as many positions")
    rng = np.random.default_rng(list(seed))
    jumps = _STRETCHED_PARTS - 1
    spans = np.exp(rng.uniform(math.log(length), math.log(reach), size=rows)).astype(np.int64).clip(length, reach)
    # A jump's size: the total cut at uniform places, as the parts of a stick.
    sticks = np.sort(rng.uniform(size=(rows, jumps)), axis=1)
    totals = np.floor(sticks * (spans - length + 1)[:, None]).astype(np.int64).clip(max=(spans - length)[:, None])
    cuts = np.sort(rng.integers(1, max(length, 2), size=(rows, jumps)), axis=1)
    places = np.arange(length)
    positions = np.repeat(places[None], rows, axis=0)
    for jump in range(jumps):
        step = totals[:, jump] - (totals[:, jump - 1] if jump else 0)
        positions += np.where(places >= cuts[:, jump, None], step[:, None], 0)
    return torch.from_numpy(positions)


class Source(Protocol):
    """An endless stream of windows of `length` token ids."""

    def window(self, length: int) -> np.ndarray:
        """The next window, int64 [length]."""

    def state(self) -> State:
        """Where the stream stands."""

    def restore(self, state: State) -> None:
        """Continue from a state."""


class PackedText:
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
                f"the corpus has {len(self._corpus)} tokens, too few for windows of {length}; "
                "use a shorter sequence length or more text"
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


class RenamedText:
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
        end, ids = self._tokenizer.eos_ids[0], list[int]()
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


class _GeneratedTexts(ABC):
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
        end = self._tokenizer.eos_ids[0]
        ids: list[int] = []
        while len(ids) < length:
            text = self._text(length - len(ids))
            self._index += 1
            ids += [*self._tokenizer.encode(text, parse_special=False), end]
        return np.asarray(ids[:length], dtype=np.int64)


class RetrievalTasks(_GeneratedTexts):
    """Generated retrieval text (`tasks.py`)."""

    def _text(self, room: int) -> str:
        return retrieval_text(self._seed, self._index, room)


class LookupTasks(_GeneratedTexts):
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


class Mixture:
    """Batches whose rows come from several sources, each row's source drawn by weight.

    Args:
        sources: by name.
        weights: by name; expected part of the rows is weight / sum of weights.
        seed: of the draws.

    Raises:
        ValueError: names differ, or a weight is negative, or all are zero.
    """

    def __init__(self, sources: dict[str, Source], weights: dict[str, float], *, seed: int) -> None:
        if set(sources) != set(weights):
            raise ValueError(f"weights name {sorted(weights)}, the sources are {sorted(sources)}")
        if min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ValueError(f"weights {weights} must be non-negative, and one of them positive")
        self._sources = sources
        self._names = sorted(sources)
        self._weights = [weights[name] for name in self._names]
        self._seed = seed
        self._rows = 0

    def batch(self, rows: int, length: int) -> torch.Tensor:
        """The next batch, int64 [rows, length + 1]."""
        return torch.from_numpy(np.stack([self._row(length + 1) for _ in range(rows)]))

    def _row(self, length: int) -> np.ndarray:
        name = random.Random(f"{self._seed}/{self._rows}").choices(self._names, self._weights)[0]
        self._rows += 1
        return self._sources[name].window(length)

    def state(self) -> State:
        """Rows drawn, and the state of each source under `name.key`."""
        record = {"rows": self._rows}
        for name, source in self._sources.items():
            record |= {f"{name}.{key}": value for key, value in source.state().items()}
        return record

    def restore(self, state: State) -> None:
        """Continue from a state.

        Raises:
            ValueError: the state was saved by a mixture of other sources.
        """
        expected = self.state().keys()
        if state.keys() != expected:
            raise ValueError(f"data state has {sorted(state)}, this mixture needs {sorted(expected)}")
        self._rows = state["rows"]
        for name, source in self._sources.items():
            prefix = name + "."
            source.restore({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
