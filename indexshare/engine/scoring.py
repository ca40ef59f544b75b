"""How likely a model finds a given text, token by token, through the engine's own cache and chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from indexshare.cache.blocks import BlockAllocator, BlockTable
from indexshare.cache.paged import PagedCache
from indexshare.engine.outputs import TokenLogprobs
from indexshare.engine.runner import Model
from indexshare.engine.sampler import token_logprobs

_LOGIT_BYTES = 32 << 20  # of float64 logits held at once


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """Log-probabilities of a text.

    Attributes:
        token_ids: of the text.
        tokens: the log-probability of each; None for a first token with nothing before it.
        num_bytes: UTF-8 bytes of the tokens with a log-probability, None without a tokenizer.
        windows: passes over the text; more than one where it does not fit into the context.
        window: most tokens in a pass.
        stride: tokens by which the passes move on: each token stands behind at least `window - stride` others, or
            behind all there are.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[TokenLogprobs | None, ...]
    num_bytes: int | None
    windows: int
    window: int
    stride: int

    @property
    def scored(self) -> int:
        """Number of tokens with a log-probability."""
        return sum(token is not None for token in self.tokens)

    @property
    def logprob(self) -> float:
        """Natural log-probability of the whole text."""
        return math.fsum(token.logprob for token in self.tokens if token is not None)

    @property
    def bits(self) -> float:
        """Code length of the text in bits."""
        return -self.logprob / math.log(2)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte, None where the bytes are not known."""
        return self.bits / self.num_bytes if self.num_bytes else None

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-probability of a token."""
        return math.exp(-self.logprob / self.scored)


def cut_windows(length: int, first: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """Passes that score positions `first` (but never 0) to `length - 1`: (start, end, first position scored) of each.

    The last token of a pass is predicted in it but not fed to it, so a pass feeds at most `window` tokens.
    """
    passes, scored, start = list[tuple[int, int, int]](), max(first, 1), 0
    while scored < length:
        end = min(start + window + 1, length)
        if end > scored:
            passes.append((start, end, scored))
            scored = end
        start += stride
    return passes


class ScoreTokens(Protocol):
    """`Scorer.score`, or what does the same."""

    def __call__(
        self, ids: Sequence[int], first: int, *, top: int, progress: Callable[[int], None] | None
    ) -> list[TokenLogprobs]: ...


def score_windows(
    score: ScoreTokens,
    ids: Sequence[int],
    first: int,
    *,
    top: int,
    window: int,
    stride: int,
    progress: Callable[[int, int], None] | None = None,
) -> TextScore:
    """Score `ids[first:]` in as many passes as it takes; bytes are left to the caller.

    Args:
        score: what runs one pass.
        ids: two at least.
        first: 0 scores all but the first token, which has nothing before it.
        top, window, stride: see `TextScore` and `Scorer.score`.
        progress: called with (tokens read, tokens to read in all passes).
    """
    passes = cut_windows(len(ids), first, window, stride)
    total, done = sum(end - start - 1 for start, end, _ in passes), 0

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        if progress is not None:
            progress(done, total)

    found: list[TokenLogprobs | None] = [] if first else [None]
    for start, end, scored in passes:
        found += score(ids[start:end], scored - start, top=top, progress=advance)
    return TextScore(
        token_ids=tuple(ids[first:]),
        tokens=tuple(found),
        num_bytes=None,
        windows=len(passes),
        window=window,
        stride=stride,
    )


class Scorer:
    """Runs given tokens through a model, for their log-probabilities alone.

    Args:
        model: in evaluation mode, on the cache's device.
        cache: its cache; blocks are taken from `allocator` for the time of a pass.
        allocator: of the cache's blocks.
        chunk: most tokens computed at a time.
        full_attention_below: as in `GlmMoeDsa.trunk`.
    """

    def __init__(
        self, model: Model, cache: PagedCache, allocator: BlockAllocator, *, chunk: int, full_attention_below: int = 0
    ) -> None:
        self._model = model
        self._cache = cache
        self._allocator = allocator
        self._chunk = chunk
        self._full_attention_below = full_attention_below

    def score(
        self, ids: Sequence[int], first: int, *, top: int = 0, progress: Callable[[int], None] | None = None
    ) -> list[TokenLogprobs]:
        """Log-probabilities of `ids[first:]`, each behind all that come before it.

        Args:
            ids: at most one more than the cache and the model's context hold.
            first: at least 1.
            top: most likely tokens to give for each place.
            progress: told the tokens of each finished chunk.

        Raises:
            ValueError: the cache has no room, or logits are NaN or infinite.
            OSError: the cache has lost rows that lay in a file.
        """
        table = BlockTable(self._allocator.allocate(self._allocator.blocks_for(len(ids) - 1)))
        try:
            found = list[TokenLogprobs]()
            for past, hidden in self._chunks(ids[:-1], table):
                skip = max(0, first - 1 - past)  # the row at position p predicts the token at p + 1
                found += self._logprobs(hidden[skip:], ids[past + skip + 1 : past + len(hidden) + 1], top)
                if progress is not None:
                    progress(len(hidden))
            return found
        finally:
            self._allocator.free(table.ids)

    @torch.inference_mode()
    def _chunks(self, ids: Sequence[int], table: BlockTable) -> Iterator[tuple[int, Tensor]]:
        """Position of the first row and hidden rows `[N, H]` of each chunk."""
        for past in range(0, len(ids), self._chunk):
            part = torch.tensor(ids[past : past + self._chunk], dtype=torch.int64, device=self._cache.device)
            view = self._cache.view([table], [(past, len(part))])
            hidden = self._model.trunk(part, view, full_attention_below=self._full_attention_below)
            for reason in self._cache.flush().values():
                raise OSError(reason)
            yield past, hidden

    @torch.inference_mode()
    def _logprobs(self, hidden: Tensor, targets: Sequence[int], top: int) -> Iterator[TokenLogprobs]:
        rows = max(1, _LOGIT_BYTES // (8 * self._model.config.vocab_size))
        for start in range(0, len(targets), rows):
            logits = self._model.logits(hidden[start : start + rows])
            if not torch.isfinite(logits).all():
                raise ValueError(
                    "the logits are NaN or infinite; check the weights for NaN, or load the model in a wider dtype "
                    "such as float32"
                )
            part = targets[start : start + rows]
            yield from (entry for entry in token_logprobs(logits, part, [top] * len(part)) if entry is not None)
