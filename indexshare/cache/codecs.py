"""Codecs: how the rows of a cache stream lie in memory. An open registry; a codec is a class and a line.

The model writes and reads rows in the type it computes in. A codec whose stored rows are those rows (`is_plain`) costs
nothing: reads of consecutive rows are views, and kernels read the pool in place.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.config.layers import Stream


class Codec(ABC):
    """Stores the rows of one stream.

    Args:
        stream: what is stored.
        dtype: type of the rows that `decode` gives, the type the model computes in.
    """

    def __init__(self, stream: Stream, dtype: torch.dtype) -> None:
        self.stream, self.dtype = stream, dtype

    @property
    @abstractmethod
    def stored(self) -> tuple[torch.dtype, int]:
        """Type and number of the elements in which one row is stored."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one stored row."""
        dtype, count = self.stored
        return dtype.itemsize * count

    @property
    def is_plain(self) -> bool:
        """Whether a stored row is the row itself, in type and width."""
        return False

    @abstractmethod
    def encode(self, rows: Tensor) -> Tensor:
        """Rows `[..., width]` of any floating type as stored elements `[..., count]`."""

    @abstractmethod
    def decode(self, stored: Tensor) -> Tensor:
        """Stored elements `[..., count]` as rows `[..., width]` of `dtype`."""


class PlainCodec(Codec):
    """Rows in a floating type.

    Args:
        stream: what is stored.
        dtype: of the rows that `decode` gives.
        kept: of the rows in memory.
    """

    def __init__(self, stream: Stream, dtype: torch.dtype, kept: torch.dtype) -> None:
        super().__init__(stream, dtype)
        self.kept = kept

    @property
    def stored(self) -> tuple[torch.dtype, int]:
        return self.kept, self.stream.width

    @property
    def is_plain(self) -> bool:
        return self.kept == self.dtype

    def encode(self, rows: Tensor) -> Tensor:
        return rows.to(self.kept)

    def decode(self, stored: Tensor) -> Tensor:
        return stored.to(self.dtype)


MakeCodec = Callable[[Stream, torch.dtype], Codec]
_CODECS: dict[str, MakeCodec] = {}


def register_codec(name: str, make: MakeCodec) -> None:
    """Add a codec: `make(stream, dtype)` gives the codec of one stream, read back in `dtype`."""
    _CODECS[name] = make


def codec_names() -> tuple[str, ...]:
    """Names of all codecs."""
    return tuple(_CODECS)


def make_codec(name: str, stream: Stream, dtype: torch.dtype) -> Codec:
    """The codec called `name` for one stream.

    Raises:
        ValueError: no such codec; the nearest name and all names are given.
    """
    make = _CODECS.get(name)
    if make is None:
        near = difflib.get_close_matches(name, _CODECS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"no cache codec {name!r}{hint} expected one of {', '.join(_CODECS)}")
    return make(stream, dtype)


def _plain(kept: torch.dtype) -> MakeCodec:
    return lambda stream, dtype: PlainCodec(stream, dtype, kept)


for _kept in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    register_codec(str(_kept).removeprefix("torch."), _plain(_kept))


@dataclass(frozen=True)
class Pool:
    """The rows of one stream of one layer, as its codec stores them: `stored` `[slots, count]`."""

    stored: Tensor
    codec: Codec

    def write(self, slots: Tensor, rows: Tensor) -> None:
        """Store rows `[N, W]` at slots int64 `[N]`."""
        self.stored.index_copy_(0, slots, self.codec.encode(rows))

    def run(self, first: int, count: int) -> Tensor:
        """Rows `[count, W]` of consecutive slots; a view if the codec is plain."""
        return self.codec.decode(self.stored[first : first + count])

    def blocks(self, ids: Tensor, size: int) -> Tensor:
        """Rows `[len(ids) * size, W]` of whole blocks of `size` slots, in the order of int64 `ids`."""
        width = self.stored.shape[1]
        return self.codec.decode(self.stored.view(-1, size, width).index_select(0, ids).view(-1, width))

    def at(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Rows `[n, W]` that hold all `slots` (int64, any shape, -1 for none), and where in them each slot's row is.

        A plain pool is given as it is, without a copy; of another the rows in question are decoded.
        """
        if self.codec.is_plain:
            return self.stored, slots
        wanted, places = slots.clamp_min(0).unique(return_inverse=True)
        return self.codec.decode(self.stored[wanted]), places.masked_fill(slots < 0, -1)
