"""Codecs: how the rows of a cache stream lie in memory. An open registry; a codec is a class and a line.

The model writes and reads rows in the type it computes in. A codec whose stored rows are those rows (`is_plain`) costs
nothing: reads of consecutive rows are views, and kernels read the pool in place. They also read rows in place whose
bytes have a `layout`; of any other codec the rows in question are decoded first.

| name | row of GLM-5.2's latents and index keys | error |
|---|---|---|
| `float32`, `bfloat16`, `float16`, `float64` | values in that type | its rounding |
| `fp8` | 656 and 132 bytes: E4M3, a float32 scale for 128 values, the rotary key in bfloat16 | 2^-4 of a value |
| `int8` | 656 and 132 bytes, the same with signed integers | 0.4 % of the largest of 128 |

Rules and bounds: `ops.coded.reference`.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from indexshare import ops
from indexshare.config import ModelConfig
from indexshare.config.layers import INDEX_KEYS, Stream, layer_streams
from indexshare.ops.coded.decoding import decode_rows
from indexshare.ops.coded.layout import BF16, FP8, INT8, RowLayout
from indexshare.ops.coded.rows import CodedRows, Rows


class Codec(ABC):
    """Stores the rows of one stream.

    Args:
        stream: what is stored.
        dtype: type of the rows that `decode` gives, the type the model computes in.
    """

    layout: RowLayout | None = None  # of the stored bytes, where kernels can read them in place

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
        if (dtype, kept) == (torch.float32, torch.bfloat16):
            self.layout = RowLayout(kind=BF16, width=stream.width, precise=stream.width)

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


class GroupedCodec(Codec):
    """8 bits for a value and a float32 scale for 128 of them; precise values in bfloat16.

    Args:
        stream: what is stored.
        dtype: of the rows that `decode` gives.
        kind: `"fp8"` or `"int8"`.
    """

    layout: RowLayout

    def __init__(self, stream: Stream, dtype: torch.dtype, kind: str) -> None:
        super().__init__(stream, dtype)
        self.layout = RowLayout(kind=kind, width=stream.width, precise=stream.precise)

    @property
    def stored(self) -> tuple[torch.dtype, int]:
        return torch.uint8, self.layout.num_bytes

    def encode(self, rows: Tensor) -> Tensor:
        flat = rows.reshape(-1, self.layout.width)
        return ops.encode_rows(flat, self.layout).view(*rows.shape[:-1], self.layout.num_bytes)

    def decode(self, stored: Tensor) -> Tensor:
        return decode_rows(stored, self.layout, self.dtype)


MakeCodec = Callable[[Stream, torch.dtype], Codec]
_CODECS: dict[str, MakeCodec] = {}
_ALIASES = {"bf16": "bfloat16"}  # as `indexshare plan` and the literature have it


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
    _check_name(name, "no cache codec")
    return _CODECS[_ALIASES.get(name, name)](stream, dtype)


def codec_name(argument: str, wanted: str | torch.dtype | None) -> str | None:
    """The name of a codec as a user gave it, None for none.

    Raises:
        ValueError: no such codec; the argument, the nearest name and all names are given.
    """
    if wanted is None:
        return None
    name = str(wanted).removeprefix("torch.")
    _check_name(name, f"{argument} is")
    return name


def codecs_by_stream(config: ModelConfig, everything: str | None, index_keys: str | None) -> dict[str, str]:
    """Codecs by stream: one for everything, and another for the index keys if one is named."""
    streams = {stream.name for layer in range(config.num_hidden_layers) for stream in layer_streams(config, layer)}
    names = {} if everything is None else dict.fromkeys(streams, everything)
    return names if index_keys is None else names | {INDEX_KEYS: index_keys}


def row_bytes(codecs: Mapping[str, str], dtype: torch.dtype) -> Callable[[Stream], int]:
    """Bytes of a row of a stream, for `planner.memory.cache_bytes`; in `dtype` where no codec is named."""
    plain = str(dtype).removeprefix("torch.")
    return lambda stream: make_codec(codecs.get(stream.name, plain), stream, dtype).row_bytes


def _check_name(name: str, what: str) -> None:
    if _ALIASES.get(name, name) not in _CODECS:
        near = difflib.get_close_matches(str(name), _CODECS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"{what} {name!r}{hint} expected one of {', '.join(_CODECS)}")


def _plain(kept: torch.dtype) -> MakeCodec:
    return lambda stream, dtype: PlainCodec(stream, dtype, kept)


for _kept in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    register_codec(str(_kept).removeprefix("torch."), _plain(_kept))
for _kind in (FP8, INT8):
    register_codec(_kind, partial(GroupedCodec, kind=_kind))


@dataclass(frozen=True)
class Pool:
    """The rows of one stream of one layer, as its codec stores them: `stored` `[slots, count]`."""

    stored: Tensor
    codec: Codec

    def write(self, slots: Tensor, rows: Tensor) -> None:
        """Store rows `[N, W]` at slots int64 `[N]`."""
        self.stored.index_copy_(0, slots, self.codec.encode(rows))

    def run(self, first: int, count: int) -> Rows:
        """Rows `[count, W]` of consecutive slots, as they lie."""
        return self._rows(self.stored[first : first + count])

    def blocks(self, ids: Tensor, size: int, count: int) -> Rows:
        """The first `count` rows of whole blocks of `size` slots, in the order of int64 `ids`; bytes are copied."""
        width = self.stored.shape[1]
        return self._rows(self.stored.view(-1, size, width).index_select(0, ids).view(-1, width)[:count])

    def at(self, slots: Tensor) -> tuple[Rows, Tensor]:
        """Rows `[n, W]` that hold all `slots` (int64, any shape, -1 for none), and where in them each slot's row is.

        The pool as it lies, without a copy; of a codec whose rows kernels do not read, those in question are decoded.
        """
        if self.codec.is_plain or self.codec.layout is not None:
            return self._rows(self.stored), slots
        wanted, places = slots.clamp_min(0).unique(return_inverse=True)
        return self.codec.decode(self.stored[wanted]), places.masked_fill(slots < 0, -1)

    @property
    def kernel_layout(self) -> RowLayout | None:
        """The layout of rows that kernels read in place though they are not plain."""
        return None if self.codec.is_plain else self.codec.layout

    def _rows(self, stored: Tensor) -> Rows:
        """Stored elements as rows: as they lie where kernels can read them so, else decoded."""
        layout = self.kernel_layout
        if layout is None:
            return self.codec.decode(stored)
        return CodedRows(stored.view(torch.uint8), layout, self.codec.dtype)
