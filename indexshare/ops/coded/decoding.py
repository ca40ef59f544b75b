"""Stored rows as numbers, in plain torch on any device. Rules: see the reference; the same values, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from indexshare.ops.coded.layout import BF16, FP8, GROUP, RowLayout


def decode_rows(stored: Tensor, layout: RowLayout, dtype: torch.dtype) -> Tensor:
    """Bytes uint8 `[..., layout.num_bytes]` as rows `[..., W]` of `dtype`."""
    precise = _numbers(stored[..., layout.precise_at :], torch.bfloat16).to(dtype)
    if layout.kind == BF16:
        return precise
    codes = stored[..., : layout.packed].view(torch.float8_e4m3fn if layout.kind == FP8 else torch.int8)
    scales = _numbers(stored[..., layout.packed : layout.precise_at], torch.float32)
    values = codes.float().mul_(scales.repeat_interleave(GROUP, dim=-1)[..., : layout.packed])
    return torch.cat((values.to(dtype), precise), dim=-1)


def _numbers(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes that lie anywhere as numbers; copied, for numbers must lie at multiples of their size."""
    return viewed(stored.clone(memory_format=torch.contiguous_format), dtype)


def viewed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The same bytes as another type; of nothing too, whose strides torch refuses."""
    if values.numel():
        return values.view(dtype)
    return values.new_empty(*values.shape[:-1], values.shape[-1] * values.itemsize // dtype.itemsize, dtype=dtype)
