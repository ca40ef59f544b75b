"""Tensors of GGUF files under the public names, decoded as they are read (extra `gguf`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from indexshare.checkpoint.stored import CHUNK_BYTES, StoredTensor
from indexshare.config.gguf_file import GgufFile, read_gguf
from indexshare.config.gguf_models import public_names
from indexshare.config.gguf_unpacked import SUFFIX, WEIGHTS_LINK

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_gguf_directory(directory: Path) -> dict[str, StoredTensor] | None:
    """Every tensor of a GGUF file's directory by its public name; None where it is no such directory.

    Raises:
        ValueError: the file is damaged.
    """
    link = directory / WEIGHTS_LINK
    return _stored(read_gguf(link.resolve())) if link.exists() else None


def _stored(file: GgufFile) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for name, (public, heads) in public_names(file).items():
        tensor = file.tensors[name]
        if public in found:
            raise ValueError(f"{file.path}: two tensors are {public}")
        found[public] = StoredTensor(
            name=public, file=file.path, dtype=_PLAIN.get(tensor.kind, torch.float32), shape=tensor.shape,
            begin=tensor.begin, end=tensor.end, packed="" if tensor.kind in _PLAIN else tensor.kind, heads=heads,
        )  # fmt: skip
    return found


def decoded(stored: StoredTensor) -> Iterator[Tensor]:
    """A tensor's values as torch has them, piece by piece of whole rows, each `[rows, ...]`.

    Raises:
        ValueError: the library that decodes is not installed.
    """
    rows = stored.shape[0]
    row_bytes = (stored.end - stored.begin) // rows
    step = rows if stored.heads else max(1, CHUNK_BYTES // (4 * max(1, torch.Size(stored.shape[1:]).numel())))
    with stored.file.open("rb") as stream:
        stream.seek(stored.begin)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            values = _values(stored, stream.read(count * row_bytes), count)
            yield _by_halves(values, stored.heads) if stored.heads else values


def _values(stored: StoredTensor, data: bytes, rows: int) -> Tensor:
    if len(data) != rows * ((stored.end - stored.begin) // stored.shape[0]):
        raise ValueError(f"{stored.file} ended while {stored.name!r} was read; it changed during loading")
    shape = (rows, *stored.shape[1:])
    if not stored.packed:
        return torch.frombuffer(bytearray(data), dtype=stored.dtype).view(shape)
    try:
        import gguf
        import numpy
    except ImportError:
        raise ValueError(
            f"{stored.name!r} in a {SUFFIX} file is {stored.packed}, which needs the package gguf: pip install gguf"
        ) from None
    blocks = numpy.frombuffer(data, dtype=numpy.uint8).reshape(rows, -1)
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[stored.packed])
    return torch.from_numpy(numpy.ascontiguousarray(values)).view(shape)


def _by_halves(values: Tensor, heads: int) -> Tensor:
    """Rows whose rotary pairs are neighbours within a head, in the order in which they are half a head apart."""
    return values.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2).contiguous()
