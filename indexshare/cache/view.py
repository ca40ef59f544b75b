"""What one forward pass sees of the past: a packed batch of sequences and the storage their tokens live in.

Shape letters: N packed rows of the batch, T_i tokens of sequence i including this batch's, R latent width
(`kv_lora_rank + qk_rope_head_dim`), D index-key width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """One sequence of a packed batch: rows `start .. start+length-1` are its positions `past .. past+length-1`."""

    start: int
    length: int
    past: int

    @property
    def stop(self) -> int:
        """One past the last packed row."""
        return self.start + self.length

    @property
    def total(self) -> int:
        """Tokens of the sequence once this batch is written."""
        return self.past + self.length


def pack_spans(sizes: Sequence[tuple[int, int]]) -> tuple[Span, ...]:
    """Spans of sequences given as `(past, length)`, laid out one after the other."""
    spans, start = [], 0
    for past, length in sizes:
        if past < 0 or length < 1:
            raise ValueError(f"a sequence with {past} past tokens and {length} new ones; expected at least 0 and 1")
        spans.append(Span(start, length, past))
        start += length
    return tuple(spans)


class BatchView(ABC):
    """The interface between a forward pass and a cache.

    For every layer a pass first writes the rows of this batch, then reads; reading before writing returns
    stale or undefined rows. Nothing else is changed, so a pass may be repeated.
    """

    spans: tuple[Span, ...]
    positions: Tensor  # int64 [N], a row's place in its sequence: what it may see, and where it is stored

    def __init__(self, spans: Sequence[Span], device: torch.device | str = "cpu") -> None:
        self.spans = tuple(spans)
        rows = [torch.arange(s.past, s.total, device=device) for s in self.spans]
        self.positions = torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64, device=device)

    @property
    def rotary_positions(self) -> Tensor:
        """Positions that RoPE turns by, int64 [N]: the rows' own, unless a view says otherwise."""
        return self.positions

    @property
    def num_rows(self) -> int:
        """Rows of the packed batch, N."""
        return self.spans[-1].stop if self.spans else 0

    @abstractmethod
    def write_latents(self, layer: int, latents: Tensor) -> None:
        """Store this batch's rows `[N, R]` of `layer`: normalised latent, then rotated rope key."""

    @abstractmethod
    def write_index_keys(self, layer: int, keys: Tensor) -> None:
        """Store this batch's index keys `[N, D]`; only Full layers and the draft layer have them."""

    @abstractmethod
    def latents(self, layer: int, sequence: int) -> Tensor:
        """Rows `[T_i, R]` of one sequence, in order of position."""

    @abstractmethod
    def index_keys(self, layer: int, sequence: int) -> Tensor:
        """Index keys `[T_i, D]` of one sequence, in order of position."""

    @abstractmethod
    def pool(self, layer: int) -> Tensor:
        """The storage `[slots, R]` of a layer that `slots()` points into."""

    @abstractmethod
    def slots(self, sequence: int, positions: Tensor) -> Tensor:
        """Rows of `pool()` that hold `positions` (int64, any shape, each in `0 .. T_i-1`) of one sequence."""


class InFlightView(BatchView):
    """A batch without a past: the keys are the batch's own rows. Differentiable; used for training and scoring.

    Args:
        lengths: tokens of each sequence.
        device: of the rows.
        rotary_positions: int64 [N] for RoPE in place of 0, 1, 2, ... of each sequence; training stretches short
            rows over a long context with them. What a row sees is not affected.
    """

    def __init__(
        self, lengths: Sequence[int], device: torch.device | str = "cpu", *, rotary_positions: Tensor | None = None
    ) -> None:
        super().__init__(pack_spans([(0, length) for length in lengths]), device)
        if rotary_positions is not None and rotary_positions.shape != self.positions.shape:
            raise ValueError(
                f"rotary_positions has shape {list(rotary_positions.shape)}; expected one for each of the "
                f"{self.num_rows} rows"
            )
        self._rotary_positions = rotary_positions
        self._latents: dict[int, Tensor] = {}
        self._index_keys: dict[int, Tensor] = {}

    @property
    def rotary_positions(self) -> Tensor:
        return self.positions if self._rotary_positions is None else self._rotary_positions

    def write_latents(self, layer: int, latents: Tensor) -> None:
        self._latents[layer] = latents

    def write_index_keys(self, layer: int, keys: Tensor) -> None:
        self._index_keys[layer] = keys

    def latents(self, layer: int, sequence: int) -> Tensor:
        span = self.spans[sequence]
        return self._latents[layer][span.start : span.stop]

    def index_keys(self, layer: int, sequence: int) -> Tensor:
        span = self.spans[sequence]
        return self._index_keys[layer][span.start : span.stop]

    def pool(self, layer: int) -> Tensor:
        return self._latents[layer]

    def slots(self, sequence: int, positions: Tensor) -> Tensor:
        return positions + self.spans[sequence].start
