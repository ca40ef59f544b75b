"""Checkpoints as GGUF files that llama.cpp runs: one file with weights, hyperparameters and tokenizer.

The file is written tensor by tensor, and the same checkpoint always gives the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np
import torch
from torch import Tensor

from indexshare.checkpoint.load import require_equal
from indexshare.checkpoint.lock import file_lock
from indexshare.checkpoint.matching import Matching, match_tensors
from indexshare.checkpoint.tensor_files import TensorReader, read_directory
from indexshare.checkpoint.values import holds, narrowed
from indexshare.config.model import ModelConfig
from indexshare.config.shipped import model_directory
from indexshare.export.layout import GgufTensor, all_sources, gguf_tensors
from indexshare.export.llama_cpp import Value, architecture, hyperparameters, index_head
from indexshare.export.source import CheckpointSource
from indexshare.export.vocabulary import Vocabulary, read_vocabulary
from indexshare.text.files import check_can_write

FileType = Literal["bf16", "q8_0"]
FILE_TYPES: dict[str, int] = {"bf16": 32, "q8_0": 7}  # llama.cpp's numbers (`llama_ftype`)
QUANTIZATION_VERSION = 2  # of ggml's block formats
ALIGNMENT = 32  # of every tensor in the file; the format's default
BLOCK = 32  # values that share a scale in q8_0
_Q8_STEPS = 127  # of a scale, which is float16, make the largest value
_BYTES_PER_BLOCK = {"F32": 4 * BLOCK, "BF16": 2 * BLOCK, "Q8_0": 2 + BLOCK}


@dataclass(kw_only=True)
class ExportReport:
    """What was written.

    Attributes:
        path: the file; num_bytes: its size.
        architecture: llama.cpp's name.
        tensors: number of tensors by type.
        not_quantized: matrices of a q8_0 file that stayed bfloat16, their rows being no multiple of 32.
        dropped: tensors of the checkpoint that are not in the file, with the reason.
        pre_tokenizer: llama.cpp's name, or None without a tokenizer.
        notes: what a user of the file should know, a sentence each.
    """

    path: Path
    num_bytes: int
    architecture: str
    tensors: dict[str, int] = field(default_factory=dict)
    not_quantized: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    pre_tokenizer: str | None = None
    notes: list[str] = field(default_factory=list)


def export_gguf(
    model: str | Path,
    out: str | Path,
    *,
    type: FileType = "bf16",
    tokenizer: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> ExportReport:
    """Write a checkpoint as a GGUF file for llama.cpp.

    Args:
        model: name of a shipped model, or a Hugging Face directory (float32, bfloat16 or block FP8).
        out: the file. It is written beside itself under another name and put in place when it is complete.
        type: `"bf16"`, or `"q8_0"`: 32 values share a scale. Norms, biases, router and the indexer's head weights are
            float32 in both.
        tokenizer: whether to write the tokenizer; a file without one takes token ids alone.
        progress: called with bytes written and bytes in all.

    Raises:
        ValueError: the `gguf` library is missing, llama.cpp cannot run such a model or split text as its tokenizer
            does, the checkpoint does not fit its configuration, or another process writes the file; the text names the
            fix.
        OSError: the disk is full or not writable; a file that was there before is intact.
    """
    if type not in FILE_TYPES:
        raise ValueError(f"type is {type!r}; expected one of {', '.join(FILE_TYPES)}")
    library = _library()
    target = _target(out)
    directory = model_directory(model)
    config = ModelConfig.load(directory)
    name = architecture(config)
    vocabulary = read_vocabulary(directory, config) if tokenizer else None
    try:
        matching = match_tensors(config, config, read_directory(directory))
    except ValueError as error:
        raise ValueError(f"cannot export {directory}: {error}") from None
    present = {match.spec.public for match in matching.matches}
    tensors = gguf_tensors(config, present)
    assert all_sources(tensors) == present
    file = _File(library, type, tensors)
    with file_lock(target), _replacing(target, file.num_bytes) as temporary:
        file.write(temporary, name, _metadata(config, type, vocabulary), matching, progress or (lambda *_: None))
        num_bytes = temporary.stat().st_size
    return ExportReport(
        path=target,
        num_bytes=num_bytes,
        architecture=name,
        tensors={kind: file.kinds.count(kind) for kind in sorted(set(file.kinds))},
        not_quantized=file.not_quantized,
        dropped=matching.dropped,
        pre_tokenizer=vocabulary.pre if vocabulary else None,
        notes=_notes(config, vocabulary),
    )


def _library() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise ValueError("exporting needs the gguf library; install it with: pip install 'gguf>=0.19'") from None


def _target(out: str | Path) -> Path:
    target = Path(out)
    if target.exists() and not target.is_dir() and not target.is_file():
        raise ValueError(f"{out} is a device or a pipe, which the file would replace; give the name of a file")
    if target.is_dir():
        raise ValueError(f"{out} is a directory; expected the name of a file, such as {target / 'model.gguf'}")
    check_can_write(target, replaces=(b"GGUF",))
    return target


@contextlib.contextmanager
def _replacing(target: Path, needed: int) -> Iterator[Path]:
    """A temporary name beside `target` that takes its place if the block succeeds, and is gone either way."""
    free = shutil.disk_usage(target.absolute().parent).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"cannot export: {needed:,} bytes needed, {free:,} free", str(target))
    temporary = target.with_name(f".{target.name}.writing-{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _metadata(config: ModelConfig, type: str, vocabulary: Vocabulary | None) -> dict[str, Value]:
    """All keys but the architecture's, which the library writes first. No names, dates or paths."""
    return {
        "general.type": "model",
        "general.file_type": FILE_TYPES[type],
        "general.quantization_version": QUANTIZATION_VERSION,
        **hyperparameters(config),
        **(vocabulary.metadata() if vocabulary else {"tokenizer.ggml.model": "no_vocab"}),
    }


def _notes(config: ModelConfig, vocabulary: Vocabulary | None) -> list[str]:
    notes, head = [], index_head(config)
    if head.width != config.index_head_dim:
        notes.append(
            f"index heads are {head.width} values wide in the file instead of {config.index_head_dim}, for llama.cpp's"
            " Hadamard transform; their scores rank alike"
        )
    if config.num_nextn_predict_layers:
        notes.append("llama.cpp runs the draft layer with full attention; its indexer is in the file but unused")
    if vocabulary is not None and vocabulary.bare:
        notes.append(
            f"the tokenizer puts {' '.join(vocabulary.bare)} around every text, which llama.cpp cannot be told to add;"
            " give it with the text"
        )
    if vocabulary is not None and not vocabulary.exact:
        notes.append(
            "llama.cpp has no pre-tokenizer that cuts text exactly as this tokenizer does; the nearest one is used, and"
            " about one token in a thousand of program text will differ"
        )
    return notes


class _File:
    """Types and sizes of the tensors of one file, and the writing of it."""

    def __init__(self, library: Any, type: str, tensors: list[GgufTensor]) -> None:
        self._library, self._tensors = library, tensors
        self.kinds = [_kind(tensor, type) for tensor in tensors]
        self._sizes = [_size(tensor, kind) for tensor, kind in zip(tensors, self.kinds, strict=True)]
        self.num_bytes = sum(_padded(size) for size in self._sizes)
        kept = [tensor.name for tensor, kind in zip(tensors, self.kinds, strict=True) if kind == "BF16"]
        self.not_quantized = kept if type == "q8_0" else []

    def write(
        self, file: Path, architecture: str, metadata: dict[str, Value], matching: Matching,
        progress: Callable[[int, int], None],
    ) -> None:  # fmt: skip
        """Header through the library, then the values of one tensor after another."""
        self._write_header(file, architecture, metadata)
        done = 0
        with TensorReader() as reader, file.open("ab") as stream:
            for pair in matching.repeats:
                require_equal(reader, pair)
            source = CheckpointSource(reader, matching.matches, matching.block)
            stream.write(bytes(_padded(stream.tell()) - stream.tell()))
            for tensor, kind, size in zip(self._tensors, self.kinds, self._sizes, strict=True):
                start = stream.tell()
                for piece in tensor.values(source):
                    progress(done + stream.tell() - start, self.num_bytes)
                    self._write_values(stream, piece, kind, tensor.name)
                assert stream.tell() - start == size, tensor.name
                stream.write(bytes(_padded(size) - size))
                done += _padded(size)
            progress(done, self.num_bytes)
            stream.flush()
            os.fsync(stream.fileno())

    def _write_header(self, file: Path, architecture: str, metadata: dict[str, Value]) -> None:
        writer = self._library.GGUFWriter(file, architecture)
        for key, value in metadata.items():
            _add(writer, key, value)
        for tensor, kind, size in zip(self._tensors, self.kinds, self._sizes, strict=True):
            # Of the type given here only whether it is bytes counts: the shape would then be one of bytes.
            raw = self._library.GGMLQuantizationType[kind]
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=raw)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()

    def _write_values(self, stream: BinaryIO, values: Tensor, kind: str, name: str) -> None:
        if kind == "BF16":
            stream.write(narrowed(values, torch.bfloat16, name).contiguous().view(torch.uint8).numpy().data)
            return
        plain = narrowed(values, torch.float32, name).contiguous().numpy()
        if kind == "Q8_0":
            largest = float(np.abs(plain).max(initial=0))
            if not holds(torch.float16, largest / _Q8_STEPS):
                raise ValueError(
                    f"tensor {name!r} holds {largest:g}, beyond a scale of q8_0 (at most 65504 times {_Q8_STEPS});"
                    " export it as bf16"
                )
            plain = self._library.quants.quantize(plain, self._library.GGMLQuantizationType.Q8_0)
        stream.write(plain.data)


def _add(writer: Any, key: str, value: Value) -> None:
    """One key with the type that llama.cpp reads it as."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, cast(list[Any], value))


def _kind(tensor: GgufTensor, type: str) -> str:
    if tensor.float32:
        return "F32"
    return "Q8_0" if type == "q8_0" and tensor.shape[-1] % BLOCK == 0 else "BF16"


def _size(tensor: GgufTensor, kind: str) -> int:
    return math.prod(tensor.shape) * _BYTES_PER_BLOCK[kind] // BLOCK


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
