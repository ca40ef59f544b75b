"""What the C++ kernels on rows share: reasons to refuse operands, arguments, and the launch that others need too."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from indexshare.ops.native import native


def unsupported(*operands: Tensor, differentiable: bool = False) -> str | None:
    """Why the kernels cannot take rows of these tensors, or None.

    They make no graph, so tensors that want gradients are refused while gradients are recorded, unless the caller
    sees to them itself (`differentiable`).
    """
    found, dtype = native(), operands[0].dtype
    if found.library is None:
        return found.reason
    for operand in operands:
        if not operand.is_cpu:
            return "not on the CPU"
        if operand.dtype is not dtype:
            return "dtypes " + ", ".join(str(t.dtype) for t in operands)
    if dtype is not torch.bfloat16 and dtype is not torch.float32:
        return "dtypes " + ", ".join(str(t.dtype) for t in operands)
    if not differentiable and torch.is_grad_enabled() and any(t.requires_grad for t in operands):
        return "gradients are wanted"
    return None


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See the reference; `unsupported(gate, up)` must be None."""
    a, b = as_rows(gate), as_rows(up)
    out = torch.empty(a.shape, dtype=a.dtype)
    library().indexshare_swiglu(
        is_bf16(a), a.data_ptr(), a.stride(0), b.data_ptr(), b.stride(0), *a.shape, out.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return out.view(gate.shape)


def library() -> ctypes.CDLL:
    """The kernels; `unsupported` has found them."""
    found = native().library
    assert found is not None
    return found


def as_rows(x: Tensor) -> Tensor:
    """As a matrix whose rows have no gaps inside."""
    if x.ndim != 2:
        x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def is_bf16(x: Tensor) -> bool:
    """Which of its two types a kernel computes in."""
    return x.dtype == torch.bfloat16
