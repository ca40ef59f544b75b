"""Reading a checkpoint piece by piece, as full-precision values, whatever its files hold."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from indexshare.checkpoint.matching import Match
from indexshare.checkpoint.tensor_files import CHUNK_BYTES, StoredTensor, TensorReader
from indexshare.ops.quant import dequantize_block_fp8


class CheckpointSource:
    """Values of matched tensors by public name, at most one tensor or CHUNK_BYTES of one in memory.

    Block-FP8 tensors come as float32, the others in their stored type. NaN and infinities are refused.
    """

    def __init__(self, reader: TensorReader, matches: Iterable[Match], block: tuple[int, int]) -> None:
        self._reader, self._block = reader, block
        self._matches = {match.spec.public: match for match in matches}

    def whole(self, name: str) -> Tensor:
        """The tensor in its own shape.

        Raises:
            ValueError: it holds NaN or an infinity.
        """
        match = self._matches[name]
        if match.scale is None:
            return _finite(self._reader.read(match.stored), match.stored)
        scale = _finite(self._reader.read(match.scale), match.scale)
        values = dequantize_block_fp8(self._reader.read(match.stored), scale, block=self._block)
        return _finite(values, match.stored)

    def rows(self, name: str, first: int, count: int) -> Iterator[Tensor]:
        """Rows `first ... first + count - 1` of the tensor seen as `[rows, C]`, in pieces `[n, C]`.

        Raises:
            ValueError: they hold NaN or an infinity.
        """
        match = self._matches[name]
        columns = match.stored.shape[-1]
        step = max(CHUNK_BYTES // (columns * 4), 1)
        if match.scale is not None:  # a scale covers many rows, so that these are read as a whole
            yield from self.whole(name).view(-1, columns)[first : first + count].split(step)
            return
        for start in range(first, first + count, step):
            piece = _part(match.stored, start, min(step, first + count - start))
            yield _finite(self._reader.read(piece), match.stored)


def _part(stored: StoredTensor, first: int, count: int) -> StoredTensor:
    """Some consecutive rows of a stored tensor, as if they were one."""
    columns = stored.shape[-1]
    assert (first + count) * columns <= math.prod(stored.shape), stored.name
    width = columns * stored.dtype.itemsize
    begin = stored.begin + first * width
    return replace(stored, shape=(count, columns), begin=begin, end=begin + count * width)


def _finite(values: Tensor, stored: StoredTensor) -> Tensor:
    if values.numel():
        low, high = torch.aminmax(values)  # carries NaN through
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ValueError(f"tensor {stored.name!r} in {stored.file} holds NaN or an infinity; repair the checkpoint")
    return values
