"""Rows into few bits in C++ (`cpu_impl.cpp`), with the code that the decode step stores its rows with."""

from __future__ import annotations

import torch
from torch import Tensor

from indexshare.ops.coded.layout import RowLayout
from indexshare.ops.coded.rows import kernel_form
from indexshare.ops.native import native


def unsupported(rows: Tensor, layout: RowLayout) -> str | None:
    """Why the kernel cannot take these arguments, or None. Contract: see the reference."""
    if native().library is None:
        return native().reason
    if not rows.is_cpu:
        return "not on the CPU"
    return None if rows.dtype in (torch.bfloat16, torch.float32) else f"dtype {rows.dtype}"


def encode_rows(rows: Tensor, layout: RowLayout) -> Tensor:
    """Rows `[n, W]` as bytes, uint8 `[n, layout.num_bytes]`. Contract: see the reference; `unsupported` must be None.

    Raises:
        ValueError: rows of another width.
    """
    if rows.ndim != 2 or rows.shape[1] != layout.width:
        raise ValueError(f"rows {list(rows.shape)}; expected [n, {layout.width}]")
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = torch.empty(len(rows), layout.num_bytes, dtype=torch.uint8)
    library = native().library
    assert library is not None
    library.indexshare_encode_rows(
        rows.dtype == torch.bfloat16, rows.data_ptr(), rows.stride(0) * rows.element_size(), *kernel_form(layout),
        *rows.shape, out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out
