"""What one forward pass sees of the past: a packed batch of sequences and the storage their tokens live in.

A layer's past is kept in streams (`config.layers`): MLA has one of latents, an indexer one of index keys.
Shape letters: N packed rows of the batch, T_i tokens of sequence i including this batch's, W width of a stream.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.cache.codecs import PlainCodec, Pool
from indexshare.config.layers import Stream
from indexshare.ops.coded.rows import Rows


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
    def write(self, layer: int, stream: str, rows: Tensor) -> None:
        """Store this batch's rows `[N, W]` of a stream of `layer`."""

    @abstractmethod
    def read(self, layer: int, stream: str, sequence: int) -> Tensor:
        """Rows `[T_i, W]` of one sequence, in order of position."""

    def stored(self, layer: int, stream: str, sequence: int) -> Rows:
        """The same rows as they lie, for kernels that read them in place."""
        return self.read(layer, stream, sequence)

    @abstractmethod
    def pool(self, layer: int, stream: str) -> Pool:
        """The storage that `slots()` points into."""

    @abstractmethod
    def slots(self, sequence: int, positions: Tensor) -> Tensor:
        """Rows of a pool that hold `positions` (int64, any shape, each in `0 .. T_i-1`) of one sequence."""

    def announce(self, layer: int, slots: Tensor) -> None:  # noqa: B027  most storage has nothing to prepare
        """Full layer `layer` has chosen `slots`, as in `Selection`: it and the layers it serves read those rows next.

        A cache whose rows lie somewhere slow fetches them now, once for all of these layers.
        """


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
        self._rows: dict[tuple[int, str], Tensor] = {}

    @property
    def rotary_positions(self) -> Tensor:
        return self.positions if self._rotary_positions is None else self._rotary_positions

    def write(self, layer: int, stream: str, rows: Tensor) -> None:
        self._rows[layer, stream] = rows

    def read(self, layer: int, stream: str, sequence: int) -> Tensor:
        span = self.spans[sequence]
        return self._rows[layer, stream][span.start : span.stop]

    def pool(self, layer: int, stream: str) -> Pool:
        rows = self._rows[layer, stream]
        codec = PlainCodec(Stream(name=stream, width=rows.shape[-1]), rows.dtype, rows.dtype)
        return Pool(rows, codec)

    def slots(self, sequence: int, positions: Tensor) -> Tensor:
        return positions + self.spans[sequence].start
