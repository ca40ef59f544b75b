"""How a cache row of few bits lies in memory: codecs and kernels read it here.

The layout is the public one of FlashMLA (README, "FP8 KV cache": 656 bytes for 512 + 64 values) and DeepGEMM (132 bytes
for an index key), for any width: first the values of 8 bits, then a float32 scale for each `GROUP` of them (the last
group may be shorter), then the precise values in bfloat16. Numbers are little-endian, without gaps between them.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP = 128  # values that share a scale
FP8, INT8, BF16 = "fp8", "int8", "bfloat16"
KINDS = (BF16, FP8, INT8)
INT8_LARGEST, FP8_LARGEST = 127.0, 448.0
LEAST_SCALE = 2.0**-126  # the smallest normal number: dividing by it never overflows


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """The bytes of one stored row.

    Attributes:
        kind: what the packed values are: E4M3 numbers, signed integers, or nothing at all (`"bfloat16"`: every value is
            a precise one).
        width: values of a row.
        precise: how many of them, the last ones, are bfloat16.

    Raises:
        ValueError: no such kind, or sizes that do not fit it.
    """

    kind: str
    width: int
    precise: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"the kind of a row is {self.kind!r}; expected one of {', '.join(KINDS)}")
        least = self.width if self.kind == BF16 else 0
        if not least <= self.precise <= self.width:
            raise ValueError(f"{self.precise} precise values of {self.width} in a {self.kind} row")

    @property
    def packed(self) -> int:
        """Values of 8 bits, which are the first bytes."""
        return self.width - self.precise

    @property
    def groups(self) -> int:
        """Scales, from byte `packed` on."""
        return -(-self.packed // GROUP)

    @property
    def precise_at(self) -> int:
        """First byte of the precise values."""
        return self.packed + 4 * self.groups

    @property
    def num_bytes(self) -> int:
        """Of the row."""
        return self.precise_at + 2 * self.precise
