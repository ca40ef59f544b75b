"""Norms, rotations, activations, small products in C++ (`cpu_impl.cpp`): one pass over memory, torch takes several."""

from __future__ import annotations

import torch
from torch import Tensor

from indexshare.ops.rows.launch import as_rows, is_bf16, library, unsupported
from indexshare.ops.rows.launch import swiglu as swiglu


def rms_norm_unsupported(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> str | None:
    """Why `rms_norm` is not for these arguments, or None."""
    return unsupported(x, weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """See the reference; `unsupported(x, weight)` must be None."""
    rows = as_rows(x)
    out = torch.empty_like(rows) if out is None else out
    target = out.view(rows.shape) if out.shape != rows.shape else out
    weight = weight.contiguous()
    library().indexshare_rms_norm(
        is_bf16(x), rows.data_ptr(), rows.stride(0), weight.data_ptr(), *rows.shape, eps, target.data_ptr(),
        target.stride(0), torch.get_num_threads(),
    )  # fmt: skip
    return out.view(x.shape)


def apply_rope_unsupported(x: Tensor, *_: Tensor, **__: object) -> str | None:
    """Why `apply_rope` is not for these arguments, or None."""
    return unsupported(x)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleave: bool, out: Tensor | None = None) -> Tensor:
    """See the reference; `unsupported(x)` must be None and the tables float32."""
    rows, heads, width = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype) if out is None else out
    cos, sin = cos.contiguous(), sin.contiguous()
    library().indexshare_rotate(
        is_bf16(x), x.data_ptr(), x.stride(0), x.stride(1), cos.data_ptr(), sin.data_ptr(), rows, heads, width // 2,
        interleave, out.data_ptr(), out.stride(0), out.stride(1), torch.get_num_threads(),
    )  # fmt: skip
    return out


def wide_linear_unsupported(x: Tensor, weight: Tensor) -> str | None:
    """Why `wide_linear` is not for these arguments, or None."""
    if x.dtype != torch.bfloat16:
        return f"dtype {x.dtype}: nothing has to be widened"
    if x.shape[1] % 2:
        return "odd width in bfloat16"
    return unsupported(x, weight)


def wide_linear(x: Tensor, weight: Tensor) -> Tensor:
    """See the reference; `wide_linear_unsupported(x, weight)` must be None.

    A row's result does not depend on the other rows, nor on the number of threads.

    Raises:
        MemoryError: no memory for a part of the matrix.
    """
    if x.stride(1) != 1 or x.stride(0) % 2:
        x = x.contiguous()
    weight = weight.contiguous()
    out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.float32)
    failed = library().indexshare_wide_linear(
        is_bf16(x), x.data_ptr(), x.stride(0) * x.element_size(), weight.data_ptr(), *x.shape, weight.shape[0],
        out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory for a matrix of {weight.shape[0]} x {weight.shape[1]}")
    return out
