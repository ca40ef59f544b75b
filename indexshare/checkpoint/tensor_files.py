"""Reading and writing safetensors files one tensor at a time.

The format: eight bytes with the header's length, a JSON header naming every tensor's type, shape and byte
range, then the bytes. The safetensors library maps whole files into memory and wants a shard's tensors all at
once; here tensors stream through a small buffer, and every inconsistency is an error that names file and
tensor.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from indexshare.checkpoint.gguf_tensors import decoded, read_gguf_directory
from indexshare.checkpoint.stored import CHUNK_BYTES, StoredTensor
from indexshare.checkpoint.values import narrowed
from indexshare.config.arguments import shown

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_LONGEST_NAME = 255  # bytes of a file's name
_MAX_SIZE, _MAX_DIMENSIONS = 2**63 - 1, 64  # of torch


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        twice = min(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"{shown(twice)} appears twice")
    return data


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _whole_number(text: str) -> int:
    if text == "-0":  # a float to the safetensors library
        raise ValueError("-0 is no whole number")
    return int(text)


def _load_json(text: bytes, what: str) -> dict[str, Any]:
    """An object as the safetensors library takes it: UTF-8, strict JSON, every name once."""
    try:
        data = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique_pairs, parse_constant=_no_number, parse_int=_whole_number,
        )  # fmt: skip
        if b"\\u" in text:  # an escape may stand for half a character, which no text can hold
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is damaged: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{what} is damaged: expected a JSON object, got {type(data).__name__}")
    return data


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n <= _MAX_SIZE for n in values)


def _can_be_counted(shape: list[int]) -> bool:
    """Whether torch can say how many elements such a tensor has, were its zeros ones."""
    return len(shape) <= _MAX_DIMENSIONS and math.prod(n for n in shape if n) <= _MAX_SIZE


def _are_texts(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(value, str) for value in values.values())


def _stored(name: str, entry: Any, file: Path, data_start: int) -> StoredTensor:
    """One header entry, checked on its own."""
    where = f"{file}: the header entry of {shown(name)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise ValueError(f"{where} lacks dtype, shape or data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"{where} has dtype {shown(code)}; this package reads {', '.join(DTYPES)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or not _can_be_counted(shape):
        raise ValueError(f"{where} has shape {shown(shape)} and data_offsets {shown(offsets)}; expected lists of sizes")
    expected = math.prod(shape) * DTYPES[code].itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != expected:
        raise ValueError(f"{where} spans bytes {shown(offsets)}, but {code} {shown(shape)} takes {expected} bytes")
    begin, end = offsets
    return StoredTensor(
        name=name,
        file=file,
        dtype=DTYPES[code],
        shape=tuple(shape),
        begin=data_start + begin,
        end=data_start + end,
    )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file by name, without reading any.

    Raises:
        ValueError: the file is truncated, longer than its header says, or its header is damaged.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"{file} is truncated or not a safetensors file ({size} bytes); fetch it again")
        header = _load_json(stream.read(length), f"the header of {file}")
    metadata = header.pop("__metadata__", None)
    if metadata is not None and not _are_texts(metadata):
        raise ValueError(f"the header of {file} is damaged: __metadata__ is {shown(metadata)}; expected texts by name")
    tensors = {name: _stored(name, entry, file, 8 + length) for name, entry in header.items()}
    position = 8 + length
    for tensor in sorted(tensors.values(), key=lambda t: (t.begin, t.end)):
        if tensor.begin != position:
            raise ValueError(f"{file}: {shown(tensor.name)} starts at byte {tensor.begin}, expected {position}")
        position = tensor.end
    if size != position:
        problem = "truncated" if size < position else "too long"
        raise ValueError(f"{file} is {problem}: {size} bytes, but its header describes {position}; fetch it again")
    return tensors


def _read_index(file: Path) -> dict[str, str]:
    weight_map = _load_json(file.read_bytes(), str(file)).get("weight_map")
    if not weight_map or not _are_texts(weight_map):
        raise ValueError(f"{file} has no weight_map from tensor names to file names")
    for shard in weight_map.values():
        if Path(shard).name != shard or not shard.isprintable() or len(shard.encode()) > _LONGEST_NAME:
            raise ValueError(f"{file} names the shard {shown(shard)}; expected a file name in the same directory")
    return weight_map


def _sharded(directory: Path) -> dict[str, StoredTensor]:
    index = directory / INDEX_FILE
    weight_map = _read_index(index)
    shards = sorted(set(weight_map.values()))
    absent = [shard for shard in shards if not (directory / shard).is_file()]
    if absent:
        names = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
        raise ValueError(f"{index} names {len(absent)} of {len(shards)} shards that do not exist: {names}")
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for name, stored in read_header(directory / shard).items():
            if name in tensors:
                raise ValueError(f"tensor {name!r} is both in {tensors[name].file.name} and in {shard}")
            if weight_map.get(name) != shard:
                said = weight_map.get(name)
                place = f"places it in {said}" if said else "does not list it"
                raise ValueError(f"tensor {name!r} is in {shard}, but {index} {place}")
            tensors[name] = stored
    gone = sorted(set(weight_map) - set(tensors))
    if gone:
        raise ValueError(
            f"{index} places {gone[0]!r} in {weight_map[gone[0]]}, which does not hold it ({len(gone)} such)"
        )
    return tensors


def read_directory(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model directory by name: `model.safetensors`, the shards its index names, or a GGUF file.

    Raises:
        ValueError: no weights, two competing sets of weights, an index that disagrees with its shards,
            a tensor stored twice, or a damaged file.
    """
    in_gguf = read_gguf_directory(directory)
    if in_gguf is not None:
        return in_gguf
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if index.is_file():
        if single.is_file() and SINGLE_FILE not in set(_read_index(index).values()):
            raise ValueError(f"{directory} has both {SINGLE_FILE} and {INDEX_FILE}; delete the one out of date")
        return _sharded(directory)
    if single.is_file():
        return read_header(single)
    others = sorted(p.name for p in directory.iterdir() if p.suffix in (".safetensors", ".bin", ".pt", ".gguf"))
    found = f"; it holds {', '.join(others[:5])}" if others else ""
    raise ValueError(f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}{found}")


class TensorReader:
    """Reads tensors of many files, keeping the last file open. Use as a context manager."""

    def __init__(self) -> None:
        self._stream: BinaryIO | None = None
        self._path: Path | None = None
        self.bytes_read = 0

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._path = None, None

    def _open(self, file: Path) -> BinaryIO:
        if self._stream is None or file != self._path:
            self._close()
            # Unbuffered: reads go straight into the tensor.
            self._stream, self._path = file.open("rb", buffering=0), file
        return self._stream

    def _fill(self, stored: StoredTensor, first: int, target: torch.Tensor) -> None:
        """Bytes of elements `first ...` into a contiguous CPU tensor of the stored type."""
        stream = self._open(stored.file)
        stream.seek(stored.begin + first * stored.dtype.itemsize)
        view = target.view(torch.uint8).numpy().data.cast("B")
        done = 0
        while done < len(view):
            count = stream.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise ValueError(f"{stored.file} ended while {stored.name!r} was read; it changed during loading")
            done += count
        self.bytes_read += len(view)

    def read(self, stored: StoredTensor) -> torch.Tensor:
        """The whole tensor in its stored type, on the CPU."""
        if stored.packed or stored.heads:
            return torch.cat(list(self._decoded(stored)))
        result = torch.empty(math.prod(stored.shape), dtype=stored.dtype)
        if result.numel():
            self._fill(stored, 0, result)
        return result.reshape(stored.shape)

    def _decoded(self, stored: StoredTensor) -> Iterator[torch.Tensor]:
        self.bytes_read += stored.end - stored.begin
        return decoded(stored)

    def read_into(self, stored: StoredTensor, target: torch.Tensor) -> Iterator[torch.Tensor]:
        """Fill `target` (contiguous, any floating type and device), yielding each finished piece of it, flat.

        A CPU target of the stored type is read into directly; otherwise one piece of at most CHUNK_BYTES is
        held.
        """
        assert tuple(target.shape) == stored.shape
        assert target.is_contiguous()
        flat = target.view(-1)
        if stored.packed or stored.heads:
            yield from _copied(flat, self._decoded(stored))
            return
        step = max(CHUNK_BYTES // stored.dtype.itemsize, 1)
        direct = target.dtype == stored.dtype and target.device.type == "cpu"
        buffer = None if direct else torch.empty(min(step, flat.numel()), dtype=stored.dtype)
        for first in range(0, flat.numel(), step):
            piece = flat[first : first + step]
            if buffer is None:
                self._fill(stored, first, piece)
            else:
                self._fill(stored, first, buffer[: piece.numel()])
                piece.copy_(buffer[: piece.numel()])
            yield piece


def _copied(flat: torch.Tensor, pieces: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Fill a flat tensor with pieces one after the other."""
    first = 0
    for values in pieces:
        piece = flat[first : first + values.numel()]
        piece.copy_(values.reshape(-1))
        first += values.numel()
        yield piece


@dataclass(frozen=True, kw_only=True)
class TensorToWrite:
    """A tensor to be written: its header entry now, its values when its turn comes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    produce: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(file: Path, tensors: Iterable[TensorToWrite], *, check_finite: bool = True) -> int:
    """Write one safetensors file and flush it to the disk; the same tensors always give the same bytes.

    Wide types come first, so that every tensor is aligned, then names in order, as the safetensors library
    does it.

    Returns:
        Bytes written.

    Raises:
        ValueError: a value is not finite, or not in its tensor's type, unless `check_finite` is false.
    """
    ordered = sorted(tensors, key=lambda t: (-t.dtype.itemsize, t.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in ordered:
        span = [position, position + tensor.nbytes]
        header[tensor.name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": span,
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for tensor in ordered:
            _write_values(stream, tensor, check_finite)
        stream.flush()
        os.fsync(stream.fileno())
    return 8 + len(text) + position


def _write_values(stream: BinaryIO, tensor: TensorToWrite, check_finite: bool) -> None:
    values = tensor.produce().detach()
    assert tuple(values.shape) == tensor.shape, tensor.name
    flat = values.reshape(-1)
    step = CHUNK_BYTES // tensor.dtype.itemsize
    for first in range(0, flat.numel(), step):
        piece = flat[first : first + step]
        if check_finite and tensor.dtype.itemsize > 1:  # eight-bit values are made within their range
            piece = narrowed(piece, tensor.dtype, tensor.name, "; check_finite=False writes it anyway")
        piece = piece.to(device="cpu", dtype=tensor.dtype).contiguous()
        stream.write(piece.view(torch.uint8).numpy().data)


def plan_shards(tensors: Sequence[TensorToWrite], max_shard_bytes: int) -> list[tuple[str, list[TensorToWrite]]]:
    """Tensors in their given order cut into files of at most `max_shard_bytes` (one tensor may exceed it).

    Returns:
        File names, in the public `model-00001-of-00003.safetensors` style, with their tensors.
    """
    shards: list[list[TensorToWrite]] = [[]]
    used = 0
    for tensor in tensors:
        if shards[-1] and used + tensor.nbytes > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.nbytes
    if len(shards) == 1:
        return [(SINGLE_FILE, shards[0])]
    total = len(shards)
    return [(f"model-{i:05d}-of-{total:05d}.safetensors", shard) for i, shard in enumerate(shards, 1)]
