"""Codecs of cache rows as their rules read: one row, one group, one value at a time. Compare every fast path with this.

A group of up to 128 values has one scale s, from its largest magnitude m. Every step is rounded to float32.

* int8: s = max(m / 127, 2^-126). A value is stored as round(x / s), ties to even, and read as that number times s.
* fp8 (E4M3: no infinities, largest 448): s = 2^ceil(log2(m / 448)), at least 2^-126. A value is stored as the E4M3
  number nearest to x / s, ties to even, and read as that number times s. Scales are powers of two as in FlashMLA's own
  tests: 4 significant bits lose nothing by that, and every value reads exactly in bfloat16.
* precise values are rounded to bfloat16, ties to even.

Error of what is read, before a model that computes in bfloat16 rounds it once more:

* int8: at most (1/2 + 2^-15) s, which is 0.4 % of the group's largest value.
* fp8: at most 2^-4 |x| (4 significant bits), or 2^-10 s where that is more: below 2^-6 s numbers are evenly spaced.
* precise: at most 2^-8 |x|.

Zeros read as zeros, and a group of numbers below every scale with an error of at most 2^-127. Nothing saturates: x / s
is within the numbers there are. (Beyond 3.2e38 fp8 and bfloat16 round to an infinity, as float32 does soon after.) A
group with an infinity or NaN has no codes; its scale is NaN, so that all of it reads as NaN, and the engine, which
refuses NaN, notices what saturation would hide. A row is encoded when it is written, alone, and never touched again: it
does not depend on what was written before it or beside it.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from indexshare.ops.coded.layout import FP8, FP8_LARGEST, GROUP, INT8_LARGEST, LEAST_SCALE, RowLayout


def encode_rows(rows: Tensor, layout: RowLayout) -> Tensor:
    """Rows `[n, W]` of any floating type as bytes, uint8 `[n, layout.num_bytes]`."""
    stored = [list(_encode_row(row, layout)) for row in rows.float()]
    return torch.tensor(stored, dtype=torch.uint8).view(len(stored), layout.num_bytes)


def decode_rows(stored: Tensor, layout: RowLayout) -> Tensor:
    """Bytes uint8 `[n, layout.num_bytes]` as float32 rows `[n, W]`."""
    rows = [_decode_row(bytes(row.tolist()), layout) for row in stored]
    return torch.tensor(rows, dtype=torch.float32).view(len(rows), layout.width)


def error_bound(rows: Tensor, layout: RowLayout) -> Tensor:
    """Largest error of each finite value after encoding and decoding, float64 `[n, W]`, in the words above."""
    bounds = []
    for row in rows.double():
        of_row = []
        for group in _groups(row[: layout.packed].tolist()):
            scale = _scale(group, layout.kind)
            for x in group:
                of_row.append(max(2**-4 * abs(x), 2**-10 * scale) if layout.kind == FP8 else (0.5 + 2**-15) * scale)
        bounds.append([*of_row, *(2**-8 * abs(x) for x in row[layout.packed :].tolist())])
    return torch.tensor(bounds, dtype=torch.float64).view(rows.shape)


def fp8_value(code: int) -> float:
    """The E4M3 number of a code from 0 to 255: sign, 4 bits of exponent with bias 7, 3 of fraction."""
    sign, exponent, fraction = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    if (exponent, fraction) == (15, 7):
        return math.nan
    if exponent == 0:
        return sign * fraction * 2.0**-9
    return sign * (8 + fraction) * 2.0 ** (exponent - 10)


_FP8 = [fp8_value(code) for code in range(256)]


def _encode_row(row: Tensor, layout: RowLayout) -> bytes:
    codes, scales = b"", b""
    for group in _groups(row[: layout.packed].tolist()):
        scale = _scale(group, layout.kind)
        codes += bytes(_code(_float32(x / scale), layout.kind) & 255 if math.isfinite(scale) else 0 for x in group)
        scales += struct.pack("<f", scale)
    precise = row[layout.packed :].to(torch.bfloat16).view(torch.int16).tolist()
    return codes + scales + struct.pack(f"<{layout.precise}h", *precise)


def _decode_row(stored: bytes, layout: RowLayout) -> list[float]:
    scales = struct.unpack_from(f"<{layout.groups}f", stored, layout.packed)
    values = [
        _float32((_FP8[code] if layout.kind == FP8 else (code ^ 128) - 128) * scales[at // GROUP])
        for at, code in enumerate(stored[: layout.packed])
    ]
    precise = struct.unpack_from(f"<{layout.precise}h", stored, layout.precise_at)
    return [*values, *torch.tensor(precise, dtype=torch.int16).view(torch.bfloat16).tolist()]


def _groups(values: Sequence[float]) -> list[Sequence[float]]:
    return [values[at : at + GROUP] for at in range(0, len(values), GROUP)]


def _scale(group: Sequence[float], kind: str) -> float:
    if not all(math.isfinite(x) for x in group):
        return math.nan
    largest = max(abs(x) for x in group)
    ratio = _float32(largest / (FP8_LARGEST if kind == FP8 else INT8_LARGEST))
    if ratio <= LEAST_SCALE:
        return LEAST_SCALE
    fraction, exponent = math.frexp(ratio)  # fraction * 2^exponent, from 1/2 to below 1
    return ratio if kind != FP8 or fraction == 0.5 else 2.0**exponent


def _code(x: float, kind: str) -> int:
    """The code of x / s."""
    if kind != FP8:
        return round(x)  # ties to even
    nearest = min(range(127), key=lambda code: (abs(_FP8[code] - abs(x)), code & 1))
    return nearest | 128 if math.copysign(1.0, x) < 0 else nearest


def _float32(x: float) -> float:
    """Rounded to float32. A product or quotient of two float32 numbers has one rounding then: 53 bits are enough."""
    return ctypes.c_float(x).value
