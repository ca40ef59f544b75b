"""Which stored tensor fills which of ours, decided from file headers alone; what is left over is named."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from indexshare.checkpoint import names
from indexshare.checkpoint.names import SCALE_SUFFIX, TensorSpec
from indexshare.checkpoint.tensor_files import StoredTensor
from indexshare.config.arguments import shown
from indexshare.config.model import ModelConfig
from indexshare.ops.quant import BLOCK, FP8, block_grid

_SHOWN, _LONGEST = 8, 120  # names per complaint, and characters of one; a wrong config would list tens of thousands
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True)
class Match:
    """One stored tensor and its place; `scale` is its block scale when it is FP8."""

    spec: TensorSpec
    stored: StoredTensor
    scale: StoredTensor | None = None


@dataclass(kw_only=True)
class Matching:
    """The outcome: what to read, what must equal another stored tensor, and what is dropped and why.

    `block` is the rows and columns that share an FP8 scale.
    """

    block: tuple[int, int] = BLOCK
    matches: list[Match] = field(default_factory=list)
    repeats: list[tuple[StoredTensor, StoredTensor]] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)


def scale_block(config: ModelConfig) -> tuple[int, int]:
    """Rows and columns per FP8 scale of a checkpoint.

    Raises:
        ValueError: the checkpoint is quantized in a way other than block FP8.
    """
    quantization = config.quantization_config
    if quantization is None:
        return BLOCK
    method, fmt = quantization.get("quant_method"), quantization.get("fmt", "e4m3")
    if method != "fp8" or fmt not in ("e4m3", "float8_e4m3fn"):
        raise ValueError(
            f"quantization {shown(method)} ({shown(fmt)}) is not implemented; expected unquantized or fp8 e4m3 blocks"
        )
    block = quantization.get("weight_block_size") or BLOCK
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        raise ValueError(f"weight_block_size is {shown(block)}; expected two positive sizes, as [128, 128]")
    return block[0], block[1]


def _listed(items: Iterable[str]) -> str:
    items = list(items)
    rest = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + rest


def expected_tensors(config: ModelConfig, stored: Iterable[str]) -> names.Names:
    """Expected tensors by public name, each layer's experts in the form the file has them in."""
    present = set(stored)
    expected = names.checkpoint_tensors(config)
    for layer in range(config.num_layers_with_draft):
        stacked = names.expert_tensors(config, layer, "stacked")
        if any(spec.public in present for spec in stacked):
            for spec in names.expert_tensors(config, layer, "per_expert"):
                del expected[spec.public]
            expected.update((spec.public, spec) for spec in stacked)
    return expected


def _drop_reason(config: ModelConfig, on_disk: ModelConfig, name: str) -> str | None:
    if names.is_ignored(name):
        return "computed, not stored"
    if names.is_surplus_indexer(config, name):
        return "indexer of a Shared layer"
    switched_off = on_disk.num_nextn_predict_layers > config.num_nextn_predict_layers
    if switched_off and names.is_draft_tensor(config, name):
        return "draft layer switched off"
    return None


def _type_problem(
    spec: TensorSpec, stored: StoredTensor, scale: StoredTensor | None, block: tuple[int, int]
) -> str | None:
    """What is wrong with one tensor, or None."""
    name = spec.public
    if stored.shape != spec.shape:
        return f"{name} has shape {list(stored.shape)}, expected {list(spec.shape)}"
    if scale is None:
        if stored.dtype == FP8:
            return f"{name} is FP8 but {name}{SCALE_SUFFIX} is missing"
        return None if stored.dtype in _FLOATS else f"{name} is {stored.dtype}, expected floating point"
    if stored.dtype != FP8:
        return f"{name} is {stored.dtype} but has a scale {scale.name}; expected float8_e4m3fn"
    grid = block_grid(spec.shape, block)
    if scale.shape != grid or scale.dtype not in _FLOATS:
        return f"{scale.name} is {scale.dtype} {list(scale.shape)}, expected float32 {list(grid)}"
    return None


def _hints(config: ModelConfig, on_disk: ModelConfig, missing: list[str], surplus: list[str]) -> list[str]:
    """What probably happened, for the end of the error text."""
    hints = []
    if missing and all(names.is_draft_tensor(config, name) for name in missing):
        hints.append(
            "every missing tensor belongs to the draft layer: load the trunk alone with"
            " config_overrides={'num_nextn_predict_layers': 0}"
        )
    if surplus and not on_disk.num_nextn_predict_layers and all(names.is_draft_tensor(config, n) for n in surplus):
        hints.append("every unexpected tensor belongs to a draft layer: num_nextn_predict_layers should be 1")
    return hints


def _with_nearest(surplus: list[str], missing: list[str]) -> list[str]:
    described = []
    for name in surplus[:_SHOWN]:
        plain = name if name.isprintable() and len(name) <= _LONGEST else shown(name)
        near = difflib.get_close_matches(name[:_LONGEST], missing[:2000], n=1, cutoff=0.8)
        described.append(f"{plain} (did you mean {near[0]}?)" if near else plain)
    return described + surplus[_SHOWN:]


def match_tensors(config: ModelConfig, on_disk: ModelConfig, stored: dict[str, StoredTensor]) -> Matching:
    """Account for every stored and every expected tensor.

    Args:
        config: the model to fill; `on_disk` is the configuration in the checkpoint (they differ by
            overrides).
        stored: what the files hold, by public name.

    Raises:
        ValueError: anything missing, left over, of the wrong shape or of the wrong type; all of it is named
            at once.
    """
    expected = expected_tensors(config, stored)
    block = scale_block(on_disk)
    result = Matching(block=block)
    used: set[str] = set()
    wrong: list[str] = []
    for name in sorted(expected.keys() & stored.keys()):
        spec, tensor, scale = expected[name], stored[name], stored.get(name + SCALE_SUFFIX)
        used.add(name)
        if scale is not None:
            used.add(scale.name)
        problem = _type_problem(spec, tensor, scale, block)
        if problem:
            wrong.append(problem)
        else:
            result.matches.append(Match(spec=spec, stored=tensor, scale=scale))
    surplus = []
    for name in sorted(stored.keys() - used):
        twin, reason = names.twin_in_trunk(config, name), _drop_reason(config, on_disk, name)
        if reason:
            result.dropped[name] = reason
        elif twin and twin in stored:
            result.repeats.append((stored[name], stored[twin]))
            result.dropped[name] = f"repeats {twin}"
        else:
            surplus.append(name)
    missing = [name for name in expected if name not in stored]
    if missing or surplus or wrong:
        raise ValueError(_complaint(missing, surplus, wrong, _hints(config, on_disk, missing, surplus)))
    return result


def _complaint(missing: list[str], surplus: list[str], wrong: list[str], hints: list[str]) -> str:
    lines = ["the tensors do not fit config.json:"]
    if missing:
        lines.append(f"{len(missing)} missing: {_listed(missing)}")
    if surplus:
        lines.append(f"{len(surplus)} unexpected: {_listed(_with_nearest(surplus, missing))}")
    if wrong:
        lines.append(f"{len(wrong)} wrong: {_listed(wrong)}")
    return "\n  ".join(lines + hints)
