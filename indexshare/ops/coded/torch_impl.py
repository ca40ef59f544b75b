"""Rows into few bits in plain torch, many at once. Rules: see the reference; the same bytes, bit for bit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from indexshare.ops.coded.decoding import viewed
from indexshare.ops.coded.layout import BF16, FP8, FP8_LARGEST, GROUP, INT8_LARGEST, LEAST_SCALE, RowLayout


def encode_rows(rows: Tensor, layout: RowLayout) -> Tensor:
    """Rows `[..., W]` of any floating type as bytes, uint8 `[..., layout.num_bytes]`."""
    precise = _bytes(rows[..., layout.packed :].to(torch.bfloat16))
    if layout.kind == BF16:
        return precise
    groups = F.pad(rows[..., : layout.packed].float(), (0, layout.groups * GROUP - layout.packed))
    groups = groups.unflatten(-1, (layout.groups, GROUP))
    scales = _scales(groups.abs().amax(-1), layout.kind)
    ratios = (groups / scales[..., None]).nan_to_num_(0.0).flatten(-2)[..., : layout.packed]
    codes = ratios.to(torch.float8_e4m3fn) if layout.kind == FP8 else ratios.round_().to(torch.int8)
    return torch.cat((codes.view(torch.uint8), _bytes(scales), precise), dim=-1)


def _scales(largest: Tensor, kind: str) -> Tensor:
    if kind == FP8:
        bits = (largest / FP8_LARGEST).view(torch.int32)
        scales = (bits + 0x7FFFFF & 0x7F800000).view(torch.float32)  # the next power of two, unless it is one
    else:
        scales = largest / INT8_LARGEST
    return torch.where(largest.isfinite(), scales.clamp_min(LEAST_SCALE), torch.nan)


def _bytes(numbers: Tensor) -> Tensor:
    return viewed(numbers.contiguous(), torch.uint8)
