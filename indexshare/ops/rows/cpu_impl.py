"""Norms, rotations, activations, small products in C++ (`cpu_impl.cpp`): one pass over memory, torch takes several."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from indexshare.ops.native import native


def unsupported(*operands: Tensor) -> str | None:
    """Why the kernels cannot take rows of these tensors, or None.

    They make no graph, so tensors that want gradients are refused while gradients are recorded.
    """
    if native().library is None:
        return native().reason
    first = operands[0]
    if any(t.device.type != "cpu" for t in operands):
        return "not on the CPU"
    if first.dtype not in (torch.bfloat16, torch.float32) or any(t.dtype != first.dtype for t in operands):
        return "dtypes " + ", ".join(str(t.dtype) for t in operands)
    if torch.is_grad_enabled() and any(t.requires_grad for t in operands):
        return "gradients are wanted"
    return None


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """See `ops.elementwise.rms_norm`; `unsupported(x, weight)` must be None."""
    rows = _rows(x)
    out = torch.empty_like(rows) if out is None else out
    target = out.view(rows.shape) if out.shape != rows.shape else out
    _library().indexshare_rms_norm(
        _is_bf16(x), _pointer(rows), _integer(rows.stride(0)), _pointer(weight.contiguous()), _integer(rows.shape[0]),
        _integer(rows.shape[1]), ctypes.c_double(eps), _pointer(target), _integer(target.stride(0)), _threads(),
    )  # fmt: skip
    return out.view(x.shape)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleave: bool, out: Tensor | None = None) -> Tensor:
    """See `ops.elementwise.apply_rope`; `unsupported(x)` must be None and the tables float32."""
    rows, heads, width = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=x.dtype) if out is None else out
    cos, sin = cos.contiguous(), sin.contiguous()
    _library().indexshare_rotate(
        _is_bf16(x), _pointer(x), _integer(x.stride(0)), _integer(x.stride(1)), _pointer(cos), _pointer(sin),
        _integer(rows), _integer(heads), _integer(width // 2), ctypes.c_int(interleave), _pointer(out),
        _integer(out.stride(0)), _integer(out.stride(1)), _threads(),
    )  # fmt: skip
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `ops.elementwise.swiglu`; `unsupported(gate, up)` must be None."""
    a, b = _rows(gate), _rows(up)
    out = torch.empty(a.shape, dtype=a.dtype)
    _library().indexshare_swiglu(
        _is_bf16(a), _pointer(a), _integer(a.stride(0)), _pointer(b), _integer(b.stride(0)), _integer(a.shape[0]),
        _integer(a.shape[1]), _pointer(out), _threads(),
    )  # fmt: skip
    return out.view(gate.shape)


def wide_linear_unsupported(x: Tensor, weight: Tensor) -> str | None:
    """Why `wide_linear` is not for these arguments, or None."""
    if x.dtype != torch.bfloat16:
        return f"dtype {x.dtype}: nothing has to be widened"
    if x.shape[1] % 2:
        return "odd width in bfloat16"
    return unsupported(x, weight)


def wide_linear(x: Tensor, weight: Tensor) -> Tensor:
    """See `ops.elementwise.wide_linear`; `wide_linear_unsupported(x, weight)` must be None.

    A row's result does not depend on the other rows, nor on the number of threads.

    Raises:
        MemoryError: no memory for a part of the matrix.
    """
    if x.stride(1) != 1 or x.stride(0) % 2:
        x = x.contiguous()
    weight = weight.contiguous()
    out = torch.empty(x.shape[0], weight.shape[0], dtype=torch.float32)
    failed = _library().indexshare_wide_linear(
        _is_bf16(x), _pointer(x), _integer(x.stride(0) * x.element_size()), _pointer(weight), _integer(x.shape[0]),
        _integer(x.shape[1]), _integer(weight.shape[0]), _pointer(out), _threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory for a matrix of {weight.shape[0]} x {weight.shape[1]}")
    return out


_integer = ctypes.c_int64


def _library() -> ctypes.CDLL:
    library = native().library
    assert library is not None
    return library


def _rows(x: Tensor) -> Tensor:
    """As a matrix whose rows have no gaps inside."""
    if x.ndim != 2:
        x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def _is_bf16(x: Tensor) -> ctypes.c_int:
    return ctypes.c_int(x.dtype == torch.bfloat16)


def _threads() -> ctypes.c_int:
    return ctypes.c_int(torch.get_num_threads())


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
