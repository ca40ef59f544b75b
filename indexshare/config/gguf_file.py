"""The header of a GGUF file (llama.cpp's format): keys, and where its tensors lie. Every inconsistency is an error.

Source: `docs/gguf.md` in the ggml repository, versions 2 and 3. Plain Python; no tensor is read.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from indexshare.config.arguments import shown

# Name, values of a block and its bytes by ggml's number of the type: those that are read.
KINDS: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
}  # fmt: skip
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_MAX_TENSORS, _MAX_KEYS, _MAX_DIMENSIONS = 1 << 20, 1 << 16, 4
_ALIGNMENT = "general.alignment"


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor: `shape` as in torch (ggml's the other way round), bytes `begin` to `end` of the file."""

    name: str
    shape: tuple[int, ...]
    kind: str
    begin: int
    end: int


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """A header: `keys` by name, `tensors` by name in the order of the file."""

    path: Path
    keys: dict[str, Any]
    tensors: dict[str, GgufTensor]

    def floats(self, name: str) -> list[float]:
        """Values of a small tensor in float32.

        Raises:
            ValueError: it is of another type.
        """
        tensor = self.tensors[name]
        if tensor.kind != "F32":
            raise ValueError(f"{name} is {tensor.kind}; expected F32")
        with self.path.open("rb") as stream:
            stream.seek(tensor.begin)
            return list(struct.unpack(f"<{math.prod(tensor.shape)}f", stream.read(tensor.end - tensor.begin)))


def read_gguf(path: Path) -> GgufFile:
    """The header of a file.

    Raises:
        ValueError: it is damaged, cut off, or of a version or with types of tensors that are not read.
    """
    facts = path.stat()
    try:
        return _read(path, facts.st_size, facts.st_mtime_ns)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@lru_cache(maxsize=4)
def _read(path: Path, size: int, _changed: int) -> GgufFile:
    if size < 24:
        raise ValueError(f"{size} bytes are no GGUF file; fetch it again")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data, size)
        if (magic := cursor.take(4)) != b"GGUF":
            raise ValueError(f"it begins with {magic!r}, which is no GGUF file")
        version = cursor.number("I")
        if version not in (2, 3):
            swapped = " (of a machine with the other byte order)" if version & 0xFFFF == 0 else ""
            raise ValueError(f"GGUF version {version}{swapped} is not read; expected 2 or 3, little-endian")
        tensors, keys = cursor.number("Q"), cursor.number("Q")
        if tensors > _MAX_TENSORS or keys > _MAX_KEYS:
            raise ValueError(f"the header names {tensors} tensors and {keys} keys; the file is damaged")
        found: dict[str, Any] = {}
        for _ in range(keys):
            name = cursor.text("a key")
            if name in found:
                raise ValueError(f"the key {shown(name)} appears twice")
            found[name] = cursor.value(name)
        infos = [_info(cursor) for _ in range(tensors)]
        return GgufFile(path=path, keys=found, tensors=_placed(infos, cursor.at, size, _alignment(found)))


class _Cursor:
    """Reads from the front, never beyond the end."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.size, self.at = data, size, 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise ValueError(f"the file ends within its header (byte {self.size}); fetch it again")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self, what: str) -> str:
        try:
            return self.take(self.number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{what} in the header is not UTF-8 text; the file is damaged") from None

    def value(self, name: str) -> Any:
        kind = self.number("I")
        if kind != _LIST:
            return self._one(kind, name)
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            code = _SCALARS[inner]
            size = struct.calcsize("<" + code)
            return list(struct.unpack(f"<{count}{code}", self.take(count * size)))
        if inner != _TEXT or count > self.size:
            raise ValueError(f"the key {shown(name)} is a list of the type {inner}; the file is damaged")
        return [self.text(name) for _ in range(count)]

    def _one(self, kind: int, name: str) -> Any:
        if kind == _TEXT:
            return self.text(name)
        if kind not in _SCALARS:
            raise ValueError(f"the key {shown(name)} is of the type {kind}; the file is damaged")
        return self.number(_SCALARS[kind])


def _alignment(keys: dict[str, Any]) -> int:
    value = keys.get(_ALIGNMENT, 32)
    if type(value) is not int or value < 1 or value & (value - 1):
        raise ValueError(f"{_ALIGNMENT} is {shown(value)}; expected a power of two")
    return value


def _info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, count = cursor.text("a tensor's name"), cursor.number("I")
    if not 1 <= count <= _MAX_DIMENSIONS:
        raise ValueError(f"tensor {shown(name)} has {count} dimensions; the file is damaged")
    shape = tuple(cursor.number("Q") for _ in range(count))
    return name, shape[::-1], cursor.number("I"), cursor.number("Q")


def _placed(
    infos: list[tuple[str, tuple[int, ...], int, int]], end_of_header: int, size: int, alignment: int
) -> dict[str, GgufTensor]:
    align: Callable[[int], int] = lambda at: -(-at // alignment) * alignment  # noqa: E731  used three times below
    start = end = align(end_of_header)
    tensors: dict[str, GgufTensor] = {}
    for name, shape, number, offset in sorted(infos, key=lambda info: info[3]):
        if name in tensors:
            raise ValueError(f"tensor {shown(name)} appears twice")
        if number not in KINDS:
            known = ", ".join(kind for kind, _, _ in KINDS.values())
            raise ValueError(f"tensor {shown(name)} is of ggml's type {number}, which is not read; read are {known}")
        kind, block, block_bytes = KINDS[number]
        if not all(0 < n < 1 << 40 for n in shape) or shape[-1] % block:
            raise ValueError(f"tensor {shown(name)} has shape {list(shape)}, which {kind} cannot have")
        if start + offset != align(end):
            raise ValueError(f"tensor {shown(name)} starts at byte {start + offset}, expected {align(end)}")
        begin, end = start + offset, start + offset + math.prod(shape) // block * block_bytes
        tensors[name] = GgufTensor(name=name, shape=shape, kind=kind, begin=begin, end=end)
    if not end <= size <= align(end):
        problem = "truncated" if size < end else "too long"
        raise ValueError(f"the file is {problem}: {size} bytes, but its header describes {end}; fetch it again")
    return tensors
