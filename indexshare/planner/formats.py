"""How weights and cache rows can be stored, and what that takes: bytes, and the type that products then run in."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache

from indexshare.config import ModelConfig
from indexshare.config.layers import LayerTensor, Role, Stream, model_tensors
from indexshare.config.packed import BITS, is_packable, packed_bytes
from indexshare.planner.memory import ParameterCount


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """How many bytes each tensor takes.

    Attributes:
        name: as on a command line.
        compute: type of products with packed weights.
        says: one line for people.
        stored: bytes of a tensor of the table of layers, padding and scales included.
    """

    name: str
    compute: str
    says: str
    stored: Callable[[LayerTensor], float]

    def total_bytes(self, config: ModelConfig) -> int:
        """Of a whole checkpoint as it lies in memory."""
        return sum(self.part_bytes(config).values())

    def part_bytes(self, config: ModelConfig) -> dict[str, int]:
        """By part of `ParameterCount`; the router's correction biases, which are float32, count with the router."""
        return dict(_part_bytes(self, config))


@lru_cache(maxsize=64)  # asked for once a context and machine, and 80 layers have 1,600 tensors
def _part_bytes(weights: WeightFormat, config: ModelConfig) -> tuple[tuple[str, int], ...]:
    parts = {item.name: 0.0 for item in fields(ParameterCount) if item.name != "active"}
    for row in model_tensors(config):
        part = "draft" if row.name.startswith("mtp.") else row.part
        parts[part] += row.size * 4 if row.role is Role.ROUTER_BIAS else weights.stored(row)
    return tuple((part, round(size)) for part, size in parts.items())


def _plain(width: float) -> Callable[[LayerTensor], float]:
    return lambda row: row.size * width


def _packed(name: str) -> Callable[[LayerTensor], float]:
    return lambda row: packed_bytes(row, BITS[name]) if is_packable(row) else row.size * 2


def _tiles(row: LayerTensor) -> float:
    """Published FP8 files: a float32 scale for each tile of 128 x 128 weights of a matrix, all else in 16 bits."""
    if not row.is_product:
        return row.size * 2
    *stack, rows, inputs = row.shape
    return row.size + 4 * math.prod(stack) * -(-rows // _TILE) * -(-inputs // _TILE)


def _experts(width: float) -> Callable[[LayerTensor], float]:
    return lambda row: row.size * (width if row.role is Role.EXPERTS else 2)


_TILE = 128
FORMATS = {
    item.name: item
    for item in (
        WeightFormat(name="float32", compute="float32", says="32 bits", stored=_plain(4)),
        WeightFormat(name="bf16", compute="bf16", says="16 bits, as published", stored=_plain(2)),
        WeightFormat(
            name="fp8", compute="fp8", stored=_tiles,
            says="8 bits with a float32 scale for 128 x 128 weights, as published",
        ),
        WeightFormat(
            name="int8", compute="bf16", stored=_packed("int8"),
            says="8 bits with a scale for 32 weights (`weights=\"int8\"`, GGUF's Q8_0)",
        ),
        WeightFormat(
            name="int4", compute="bf16", stored=_packed("int4"),
            says="4 bits with a scale for 32 weights (`weights=\"int4\"`)",
        ),
        WeightFormat(
            name="nvfp4", compute="fp4", stored=_experts(0.5 + 1 / 16),
            says="experts in 4 bits with a scale for 16 weights, the rest in 16",
        ),
        WeightFormat(
            name="q4_k_m", compute="bf16", says="llama.cpp's Q4_K_M, 4.85 bits on average", stored=_plain(4.85 / 8)
        ),
        WeightFormat(
            name="iq2_m", compute="bf16", says="llama.cpp's IQ2_M, 2.7 bits on average", stored=_plain(2.7 / 8)
        ),
    )
}  # fmt: skip


def weight_format(name: str) -> WeightFormat:
    """The format called `name`.

    Raises:
        ValueError: no such format; the nearest name and all names are given.
    """
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"--weights is {name!r}{hint} expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


_BLOCK = 128  # values of a cache row that share a float32 scale
CACHE_FORMATS = {"float32": 4, "bf16": 2, "fp8": 1, "int8": 1}  # bytes of one value, scales apart


def stream_row_bytes(stream: Stream, cache: str) -> int:
    """Bytes of one row of a cache stream.

    In 8 bits every 128 values have a float32 scale beside them, and the rotary part stays in 16 bits: 656 bytes for
    GLM-5.2's latent row and 132 for its index key (the layout of FlashMLA and DeepGEMM).

    Raises:
        ValueError: no such format.
    """
    if cache not in CACHE_FORMATS:
        raise ValueError(f"--cache-dtype is {cache!r}; expected one of {', '.join(CACHE_FORMATS)}")
    width = CACHE_FORMATS[cache]
    if width > 1:
        return stream.width * width
    packed = stream.width - stream.precise
    return packed + 4 * -(-packed // _BLOCK) + 2 * stream.precise
