"""Loading public checkpoints into a model, tensor by tensor, with every tensor accounted for.

`save_model` lives in `save.py` and is re-exported here.
"""

import difflib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from indexshare.checkpoint.companions import read_companions
from indexshare.checkpoint.device import usable_device
from indexshare.checkpoint.matching import Match, Matching, match_tensors
from indexshare.checkpoint.names import checkpoint_tensors
from indexshare.checkpoint.save import save_model
from indexshare.checkpoint.tensor_files import CHUNK_BYTES, StoredTensor, TensorReader, read_directory
from indexshare.checkpoint.values import is_finite
from indexshare.config.model import ModelConfig
from indexshare.config.shipped import model_directory
from indexshare.model.glm import GlmMoeDsa
from indexshare.ops.quant import dequantize_block_fp8

__all__ = ["LoadReport", "load_model", "parse_dtype", "save_model"]

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(kw_only=True)
class LoadReport:
    """What loading did; pass an empty one to `load_model(report=...)` and read it afterwards.

    Attributes:
        directory: where the files were.
        tensors: stored tensors that filled the model, FP8 scales not counted.
        dequantized: how many of them were block FP8, or packed in a GGUF file.
        bytes_read: bytes read from the files.
        converted: number of tensors by type change, e.g. `{"float32 -> bfloat16": 4}`.
        dropped: stored tensors that were not used, with the reason.
        seconds: wall time.
    """

    directory: Path | None = None
    tensors: int = 0
    dequantized: int = 0
    bytes_read: int = 0
    converted: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating type by name (`"bfloat16"`) or as it is.

    Raises:
        ValueError: not one of float64, float32, bfloat16, float16.
    """
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in _DTYPES.values():
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(_DTYPES)}")
    return found


def _match(config: ModelConfig, on_disk: ModelConfig, directory: Path) -> tuple[dict[str, StoredTensor], Matching]:
    """What the files hold, and where it goes; ValueError where the two do not fit."""
    try:
        stored = read_directory(directory)
        return stored, match_tensors(config, on_disk, stored)
    except ValueError as error:
        raise ValueError(f"cannot load {directory}: {error}") from None


def _own_dtype(config: ModelConfig, on_disk: ModelConfig, stored: dict[str, StoredTensor]) -> str | torch.dtype:
    """The type that a configuration states; where it does not, that of the stored embedding, as in transformers."""
    found = stored["model.embed_tokens.weight"].dtype
    stated = on_disk.dtype_is_stated or config.dtype != on_disk.dtype or found not in _DTYPES.values()
    return config.dtype if stated else found


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _override(config: ModelConfig, changes: dict[str, Any] | None) -> ModelConfig:
    known = [item.name for item in fields(ModelConfig)]
    for key in changes or {}:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown key {key!r} in config_overrides{hint}")
    plain = {key: tuple(value) if isinstance(value, list) else value for key, value in (changes or {}).items()}
    changed = config.replace(**plain) if plain else config
    if not changed.selects and plain.get("index_topk", changed.index_topk) != changed.index_topk:
        raise ValueError(
            f"index_topk is {plain['index_topk']}, but {changed.model_type} attends to everything; leave it"
        )
    return changed


def _allocate(model: nn.Module, dtype: torch.dtype, device: torch.device, keep_float32: set[str]) -> None:
    """Give a model built on the meta device storage that costs no memory until it is written."""
    replaced: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.device.type != "meta":
                continue
            if id(parameter) not in replaced:
                empty = torch.empty(parameter.shape, dtype=dtype, device=device)
                replaced[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            setattr(module, name, replaced[id(parameter)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.device.type != "meta":
                continue
            full_name = f"{prefix}.{name}".lstrip(".")
            kind = torch.float32 if full_name in keep_float32 else dtype
            setattr(module, name, torch.empty(buffer.shape, dtype=kind, device=device))


class Taker(Protocol):
    """Takes weights that the model has no storage for in their plain form."""

    def take(self, name: str, index: tuple[int | slice, ...], values: torch.Tensor) -> None:
        """Take the parameter called `name`, or the part `index` of it, in the model's type and on the CPU."""


Adapt = Callable[[GlmMoeDsa, torch.dtype, torch.device], Taker]


class _Filler:
    """Reads matched tensors into the model's storage and looks at every value once on the way."""

    def __init__(
        self, model: nn.Module, reader: TensorReader, *, block: tuple[int, int], check_finite: bool,
        dtype: torch.dtype, taker: Taker | None,
    ) -> None:  # fmt: skip
        self.storage = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.reader, self.block, self.check_finite = reader, block, check_finite
        self.dtype, self.taker = dtype, taker

    def place(self, match: Match) -> torch.dtype:
        """Read one tensor into its place; its type there."""
        spec = match.spec
        storage = self.storage.get(spec.ours)
        if storage is None:
            assert self.taker is not None, spec.ours
            values = torch.empty(spec.shape, dtype=self.dtype)
            self._fill(match, values)
            self.taker.take(spec.ours, spec.index, values)
            return values.dtype
        target = storage.detach()
        self._fill(match, target[spec.index] if spec.index else target)
        return target.dtype

    def _fill(self, match: Match, target: torch.Tensor) -> None:
        if match.scale is None:
            for piece in self.reader.read_into(match.stored, target):
                self._check(piece, match.stored)
            return
        scale = self.reader.read(match.scale).to(target.device)
        self._check(scale, match.scale)
        values = self.reader.read(match.stored).to(target.device)
        dequantize_block_fp8(values, scale, block=self.block, out=target)
        for piece in target.view(-1).split(CHUNK_BYTES):
            self._check(piece, match.stored)

    def _check(self, piece: torch.Tensor, stored: StoredTensor) -> None:
        if not self.check_finite or is_finite(piece):
            return
        wider = torch.float32 if stored.dtype.itemsize == 1 else stored.dtype
        narrow = torch.finfo(piece.dtype).max < torch.finfo(wider).max
        hint = f", or a number too large for it, which dtype={_type_name(wider)!r} holds" if narrow else ""
        raise ValueError(
            f"tensor {stored.name!r} in {stored.file} holds NaN or an infinity"
            f" (as {_type_name(piece.dtype)}){hint}; check_finite=False loads it anyway"
        )


def require_equal(reader: TensorReader, pair: tuple[StoredTensor, StoredTensor]) -> None:
    """Refuse a repeated tensor that is not what it repeats."""
    repeat, original = pair
    same = repeat.shape == original.shape and torch.equal(
        reader.read(repeat).to(torch.float32), reader.read(original).to(torch.float32)
    )
    if not same:
        raise ValueError(
            f"tensor {repeat.name!r} differs from {original.name!r}; the two are one tensor in this"
            " architecture, so a checkpoint with a separate copy cannot be represented"
        )


def _read_all(filler: _Filler, matching: Matching, report: LoadReport) -> None:
    for match in sorted(matching.matches, key=lambda m: (m.stored.file, m.stored.begin)):
        dtype = filler.place(match)
        report.tensors += 1
        report.dequantized += match.scale is not None or bool(match.stored.packed)
        if match.stored.packed or dtype != match.stored.dtype:
            change = f"{match.stored.kind} -> {_type_name(dtype)}"
            report.converted[change] = report.converted.get(change, 0) + 1
    for pair in matching.repeats:
        require_equal(filler.reader, pair)
    report.bytes_read = filler.reader.bytes_read


def _warn_of_unused(matching: Matching, directory: Path) -> None:
    unused = [name for name, reason in matching.dropped.items() if reason == "indexer of a Shared layer"]
    if unused:
        text = f"{directory}: dropped {len(unused)} indexer tensors of Shared layers ({unused[0]}, ...)"
        warnings.warn(text, stacklevel=3)


def load_model(
    name_or_dir: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    config_overrides: dict[str, Any] | None = None,
    check_finite: bool = True,
    adapt: Adapt | None = None,
    report: LoadReport | None = None,
) -> GlmMoeDsa:
    """Load a shipped model or a Hugging Face directory (bf16, float32 or block FP8; one file or many).

    Every tensor is accounted for before the first is read: anything missing, unexpected, of the wrong shape
    or type is an error that names it. Three kinds are dropped and reported: indexers on Shared layers (with
    a warning), `rotary_emb.inv_freq`, and a draft layer's own copies of the embedding and head if they equal
    the trunk's. Tensors are read one at a time into their place, so that memory peaks near the model's size.

    Args:
        name_or_dir: name of a shipped model, a directory with `config.json` and safetensors files, or a GGUF file of a
            dense model (packed types need the extra `gguf`).
        dtype: type of the parameters; `None` takes the checkpoint's. The correction bias stays float32.
        device: where the parameters live.
        config_overrides: `ModelConfig` fields to change, e.g. `{"num_nextn_predict_layers": 0}` to leave the
            draft layer out, or another `indexer_types` whose Full layers the file has indexers for.
        check_finite: refuse NaN and infinities (one fast pass over each tensor).
        adapt: called with the model before it has memory, `dtype` and `device`. It may put other modules in place of
            some (packed weights: `adapt.quantized.packing`), and returns what takes the weights that then have no
            parameter.
        report: filled with what was done.

    Returns:
        The model in evaluation mode; its `config` has the type loaded and no quantization. The files that came with it
        (tokenizer, chat template, generation config) stay with it, and `save_model` writes them.

    Raises:
        ValueError: unknown name, unusable configuration or weights; the text says which and what to do.
    """
    started = time.perf_counter()
    report = LoadReport() if report is None else report
    place, directory = usable_device(device), model_directory(name_or_dir)
    on_disk = ModelConfig.load(directory)
    config = _override(on_disk, config_overrides)
    stored, matching = _match(config, on_disk, directory)
    kind = parse_dtype(dtype or _own_dtype(config, on_disk, stored))
    with torch.device("meta"):
        model = GlmMoeDsa(config.replace(dtype=_type_name(kind), quantization_config=None))
    taker = adapt(model, kind, place) if adapt is not None else None
    model.companions = read_companions(directory, config_overrides)
    specs = checkpoint_tensors(config).values()
    _allocate(model, kind, place, {spec.ours for spec in specs if spec.float32})
    report.directory, report.dropped = directory, matching.dropped
    with TensorReader() as reader:
        filler = _Filler(model, reader, block=matching.block, check_finite=check_finite, dtype=kind, taker=taker)
        _read_all(filler, matching, report)
    _warn_of_unused(matching, directory)
    report.seconds = time.perf_counter() - started
    return model.eval()
