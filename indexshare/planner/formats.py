"""How weights and cache rows can be stored, and what that takes: bytes, and the type that products then run in."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from indexshare.config.layers import Stream
from indexshare.planner.memory import ParameterCount


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """Bytes of one weight, by the part of the model that it belongs to.

    Attributes:
        name: as on a command line.
        matrix: of the weights that the format packs, scales included.
        compute: type of their products.
        apart: parts of `ParameterCount` that are stored in another way, with their bytes.
        says: one line for people.
    """

    name: str
    matrix: float
    compute: str
    says: str
    apart: Mapping[str, float] = field(default_factory=dict)

    def width(self, part: str) -> float:
        """Bytes of one weight of a part."""
        return self.apart.get(part, self.matrix)

    def total_bytes(self, counts: ParameterCount) -> int:
        """Of a whole checkpoint."""
        return sum(self.part_bytes(counts).values())

    def part_bytes(self, counts: ParameterCount) -> dict[str, int]:
        """By part."""
        parts = [item.name for item in fields(counts) if item.name != "active"]
        return {part: round(getattr(counts, part) * self.width(part)) for part in parts}


_PRECISE = dict.fromkeys(("embedding", "router", "norms"), 2.0)  # in 16 bits in every packed format
_GROUP_SCALE = 2 / 32  # a 16-bit scale for 32 weights
FORMATS = {
    item.name: item
    for item in (
        WeightFormat(name="float32", matrix=4, compute="float32", says="32 bits"),
        WeightFormat(name="bf16", matrix=2, compute="bf16", says="16 bits, as published"),
        WeightFormat(
            name="fp8", matrix=1 + 4 / 128**2, compute="fp8", apart=_PRECISE | {"head": 2.0},
            says="8 bits with a float32 scale for 128 x 128 weights, as published",
        ),
        WeightFormat(
            name="int8", matrix=1 + _GROUP_SCALE, compute="bf16", apart=_PRECISE | {"draft": 2.0},
            says="8 bits with a scale for 32 weights (`weights=\"int8\"`, GGUF's Q8_0)",
        ),
        WeightFormat(
            name="int4", matrix=0.5 + _GROUP_SCALE, compute="bf16",
            apart=_PRECISE | {"draft": 2.0, "indexer": 1 + _GROUP_SCALE, "head": 1 + _GROUP_SCALE},
            says="4 bits with a scale for 32 weights (`weights=\"int4\"`)",
        ),
        WeightFormat(
            name="nvfp4", matrix=2, compute="fp4", apart={"experts": 0.5 + 1 / 16},
            says="experts in 4 bits with a scale for 16 weights, the rest in 16",
        ),
        WeightFormat(
            name="q4_k_m", matrix=4.85 / 8, compute="bf16", says="llama.cpp's Q4_K_M, 4.85 bits on average"
        ),
        WeightFormat(name="iq2_m", matrix=2.7 / 8, compute="bf16", says="llama.cpp's IQ2_M, 2.7 bits on average"),
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
