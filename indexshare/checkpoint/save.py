"""Saving a model as a public checkpoint directory: complete, or not at all."""

import contextlib
import errno
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from indexshare.checkpoint.companions import TOKENIZER_FILES, as_json, to_save
from indexshare.checkpoint.device import require_memory
from indexshare.checkpoint.lock import folder_lock
from indexshare.checkpoint.names import SCALE_SUFFIX, TensorSpec, checkpoint_tensors
from indexshare.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE, TensorToWrite, plan_shards, write_file
from indexshare.config.generation import GENERATION_FILE
from indexshare.config.model import ModelConfig
from indexshare.config.shipped import CONFIG_FILE
from indexshare.model.glm import GlmMoeDsa
from indexshare.ops.quant import BLOCK, FP8, block_grid, quantize_block_fp8

PREVIOUS, _SAVING = ".previous-", ".saving-"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_SAVED_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _weight(model: GlmMoeDsa, spec: TensorSpec) -> torch.Tensor:
    """The part of a parameter or buffer that one public tensor holds."""
    owner, _, name = spec.ours.rpartition(".")
    tensor: torch.Tensor = getattr(model.get_submodule(owner), name).detach()
    return tensor[spec.index] if spec.index else tensor


def _quantized_pair(model: GlmMoeDsa, spec: TensorSpec) -> list[TensorToWrite]:
    def part(which: int) -> torch.Tensor:
        try:
            return quantize_block_fp8(_weight(model, spec))[which]
        except ValueError as error:
            raise ValueError(f"{spec.public}: {error}") from None

    return [
        TensorToWrite(name=spec.public, dtype=FP8, shape=spec.shape, produce=lambda: part(0)),
        TensorToWrite(
            name=spec.public + SCALE_SUFFIX, dtype=torch.float32, shape=block_grid(spec.shape),
            produce=lambda: part(1),
        ),
    ]  # fmt: skip


def _to_write(model: GlmMoeDsa, dtype: torch.dtype, quantization: str | None) -> list[TensorToWrite]:
    tensors = []
    for spec in checkpoint_tensors(model.config).values():
        if quantization == "fp8" and spec.quantizable:
            tensors.extend(_quantized_pair(model, spec))
        else:
            kind = torch.float32 if spec.float32 else dtype
            produce = functools.partial(_weight, model, spec)
            tensors.append(TensorToWrite(name=spec.public, dtype=kind, shape=spec.shape, produce=produce))
    return tensors


def _quantization_config(config: ModelConfig) -> dict[str, Any]:
    kept = {
        spec.public.removesuffix(".weight").removesuffix(".bias")
        for spec in checkpoint_tensors(config).values()
        if not spec.quantizable
    }
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(BLOCK),
        "modules_to_not_convert": sorted(kept),
    }


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _write_weights(folder: Path, tensors: list[TensorToWrite], max_shard_bytes: int, check_finite: bool) -> None:
    shards = plan_shards(tensors, max_shard_bytes)
    for name, shard in shards:
        write_file(folder / name, shard, check_finite=check_finite)
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, shard in shards for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write(folder / INDEX_FILE, as_json(index))


def _is_weight_file(name: str) -> bool:
    return name in (SINGLE_FILE, INDEX_FILE) or _SHARD.fullmatch(name) is not None


def _is_ours(name: str) -> bool:
    return name in (CONFIG_FILE, GENERATION_FILE) or _is_weight_file(name)


def _swap_in(new: Path, directory: Path) -> None:
    """Move the finished files into `directory`, the files they replace out of it; undone if anything fails.

    Only renames happen here. `config.json` leaves first and arrives last, so that a directory in between
    (after a power cut) does not load as a mixture; the previous files then still lie in it, in a folder of their own.
    """
    arriving = sorted((entry.name for entry in new.iterdir()), key=lambda name: name == CONFIG_FILE)
    replaced = TOKENIZER_FILES if set(arriving) & set(TOKENIZER_FILES) else ()  # all of it: files of two do not mix
    leaving = {e.name for e in directory.iterdir() if _is_ours(e.name) or e.name in replaced} | set(arriving)
    old = Path(tempfile.mkdtemp(prefix=PREVIOUS, dir=directory))
    moved: list[tuple[Path, Path]] = []
    try:
        for name in sorted(leaving, key=lambda name: name != CONFIG_FILE):
            if (directory / name).exists():
                _move(directory / name, old / name, moved)
        for name in arriving:
            _move(new / name, directory / name, moved)
    except BaseException:
        for source, target in reversed(moved):
            target.rename(source)
        old.rmdir()
        raise
    for superseded in directory.glob(f"{PREVIOUS}*"):  # those of interrupted savings too
        shutil.rmtree(superseded, ignore_errors=True)


def _move(source: Path, target: Path, moved: list[tuple[Path, Path]]) -> None:
    source.rename(target)
    moved.append((source, target))


@contextlib.contextmanager
def _replacing(directory: Path, needed: int) -> Iterator[Path]:
    """A temporary folder inside `directory` whose files are moved up if the block succeeds; gone either way.

    Inside, because `directory` may be a mount point, or its parent closed to us. The folder is locked meanwhile, so
    that what an interrupted saving left can be removed.
    """
    intact = (
        "the checkpoint that was there is unchanged" if (directory / CONFIG_FILE).exists() else "nothing was written"
    )
    for left in directory.glob(f"{_SAVING}*"):
        shutil.rmtree(left, ignore_errors=True)
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"cannot save: {needed:,} bytes needed, {free:,} free; {intact}", str(directory))
    folder = Path(tempfile.mkdtemp(prefix=_SAVING, dir=directory))
    try:
        yield folder
        _swap_in(folder, directory)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"cannot save: the disk is full ({needed:,} bytes needed); {intact}"
            raise OSError(error.errno, message, str(directory)) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _checked_dtype(model: GlmMoeDsa, dtype: str | torch.dtype | None) -> tuple[str, torch.dtype]:
    wanted = next(model.parameters()).dtype if dtype is None else dtype
    for name, kind in _SAVED_DTYPES.items():
        if wanted in (name, kind):
            return name, kind
    raise ValueError(f"cannot save as {wanted!r}; pass dtype= one of {', '.join(_SAVED_DTYPES)}")


def save_model(
    model: GlmMoeDsa,
    directory: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    quantization: Literal["fp8"] | None = None,
    tokenizer_dir: str | Path | None = None,
    check_finite: bool = True,
) -> None:
    """Write a Hugging Face directory that this package, transformers, vLLM, SGLang and llama.cpp read.

    Everything is written to a temporary folder inside `directory` and moved into place when it is complete,
    so an existing checkpoint is replaced whole or not touched. Other files of an existing directory are kept.
    The files that came with a loaded model (tokenizer, chat template, generation config) are written too.
    The same model always gives the same bytes. Experts are written one tensor each, the published form.

    Args:
        model: on any device.
        directory: created with its parents.
        dtype: type of the weights in the files; `None` keeps the model's. The correction bias stays float32.
        max_shard_bytes: tensor bytes per file; more than one file comes with an index.
        quantization: `"fp8"` stores linear weights as E4M3 with a scale per 128 x 128 block; router, norms,
            embedding, head, `eh_proj` and the indexer's `weights_proj` stay in `dtype`.
        tokenizer_dir: a folder whose tokenizer files are copied instead of those that came with the model.
        check_finite: refuse weights that are NaN or infinite, or become so in the type of the files.

    Raises:
        ValueError: a setting is not implemented, the target is a file, another process writes there, or a weight is
            not finite; the text names it.
        OSError: the disk is full or not writable; what was there before is intact and nothing is left behind.
    """
    target = Path(directory).resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{directory} is a file; expected a directory to save into")
    if quantization not in (None, "fp8"):
        raise ValueError(f"quantization is {quantization!r}; expected None or 'fp8'")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}; expected at least 1")
    require_memory(model)
    name, kind = _checked_dtype(model, dtype)
    scheme = _quantization_config(model.config) if quantization else None
    config = model.config.replace(dtype=name, quantization_config=scheme)
    tensors = _to_write(model, kind, quantization)
    others = to_save(config, model.companions, tokenizer_dir)
    with folder_lock(target), _replacing(target, needed=sum(tensor.nbytes for tensor in tensors)) as folder:
        _write_weights(folder, tensors, max_shard_bytes, check_finite)
        for file, content in others.items():
            _write(folder / file, content)
        _write(folder / CONFIG_FILE, as_json(config.to_dict()))
