"""The best rates of this machine, measured: matrix product, memory copy and read. Other figures are shares of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from indexshare.measure.timing import Spread, seconds_per_call

MATRIX_SIZE, SMALL_MATRIX = 2048, 256  # n of an n x n by n x n product
PRODUCT_S = 0.25  # most seconds that one product should take: emulated bfloat16 is a hundred times slower
BUFFER_BYTES = 256 << 20  # larger than most last-level caches


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """Rates that nothing measured here should beat by much.

    Attributes:
        matrix: floating-point operations per second of a large square product in the model's type.
        copy: bytes per second of a copy in memory, those read and those written.
        read: bytes per second read, by the faster of a sum and a product with a vector.
    """

    matrix: Spread
    copy: Spread
    read: Spread

    def to_dict(self) -> dict[str, Any]:
        """Plain values, units in the names."""
        return {
            "matrix_flops_per_s": self.matrix.to_dict(),
            "copy_bytes_per_s": self.copy.to_dict(),
            "read_bytes_per_s": self.read.to_dict(),
        }


def ceiling_jobs(
    dtype: torch.dtype, *, size: int | None = None, buffer_bytes: int = BUFFER_BYTES
) -> dict[str, Callable[[], float]]:
    """Measurements to run in turn with others: each call returns one rate in operations or bytes per second.

    Args:
        dtype: of the product.
        size: of its matrices; None takes 2,048, or less where the processor has no such products and emulates them.
        buffer_bytes: size of what is read and copied.
    """
    size = _matrix_size(dtype) if size is None else size
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype)
    side = int((buffer_bytes / 4) ** 0.5)
    source, target, vector = torch.ones(side, side), torch.empty(side, side), torch.ones(side)
    moved = source.nbytes

    def read() -> float:
        ways = (lambda: source.sum(), lambda: torch.mv(source, vector))
        return moved / min(seconds_per_call(way) for way in ways)

    return {
        "matrix": lambda: 2 * size**3 / seconds_per_call(lambda: torch.mm(left, right, out=out)),
        "copy": lambda: 2 * moved / seconds_per_call(lambda: target.copy_(source)),
        "read": read,
    }


def _matrix_size(dtype: torch.dtype) -> int:
    """The largest size up to `MATRIX_SIZE` at which a product can be repeated in good time, judged by a small one."""
    small = torch.randn(SMALL_MATRIX, SMALL_MATRIX).to(dtype)
    seconds, size = seconds_per_call(lambda: torch.mm(small, small), least_s=0.01), MATRIX_SIZE
    while size > SMALL_MATRIX and seconds * (size / SMALL_MATRIX) ** 3 > PRODUCT_S:
        size //= 2
    return size


def ceilings_of(results: Mapping[str, list[float]]) -> Ceilings:
    """Medians of what the jobs of `ceiling_jobs` returned."""
    return Ceilings(**{name: Spread.of(results[name]) for name in ("matrix", "copy", "read")})


@dataclass(frozen=True, kw_only=True)
class Bound:
    """How near a piece of work came to the ceilings, and what keeps it from being faster.

    Attributes:
        flops_per_s, bytes_per_s: what it reached.
        matrix_share, read_share: the same as shares of the ceilings.
        by: `"arithmetic"` or `"memory"`, whichever ceiling is nearer; `"neither"` when less than a quarter of it is
            reached: then calls, gathering, and what is not counted take the time.
    """

    flops_per_s: float
    bytes_per_s: float
    matrix_share: float
    read_share: float
    by: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


_NEAR = 0.25


def bound_of(flops: float, num_bytes: float, seconds: float, ceilings: Ceilings) -> Bound:
    """What bounds work of so many operations and bytes that took `seconds`."""
    flops_per_s, bytes_per_s = flops / seconds, num_bytes / seconds
    matrix_share = flops_per_s / ceilings.matrix.median
    read_share = bytes_per_s / ceilings.read.median
    nearer = "arithmetic" if matrix_share >= read_share else "memory"
    return Bound(
        flops_per_s=flops_per_s,
        bytes_per_s=bytes_per_s,
        matrix_share=matrix_share,
        read_share=read_share,
        by=nearer if max(matrix_share, read_share) >= _NEAR else "neither",
    )
