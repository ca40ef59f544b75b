"""Norms, rotary embedding, SwiGLU, products that stay wide, in plain torch; see the reference for contracts."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from indexshare.ops.precision import wide


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """See the reference; fewer passes over memory, and a backward pass that keeps only the normalised rows."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RMSNorm.apply(x, weight, eps)
    return _into(out, _normalise(x, eps)[0] * weight)


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)


def _normalise(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Rows of unit mean square in `x.dtype`, and the factor `[..., 1]` each was multiplied with."""
    x_wide = x.to(wide(x.dtype))
    factor = torch.linalg.vector_norm(x_wide, dim=-1, keepdim=True)
    factor = factor.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x_wide * factor).to(x.dtype), factor


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        normed, factor = _normalise(x, eps)
        ctx.save_for_backward(normed, factor, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        normed, factor, weight = ctx.saved_tensors
        rows = normed.to(factor.dtype)
        d_normed = grad.to(factor.dtype)
        product = d_normed * rows
        d_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        along = (product @ weight.to(factor.dtype))[..., None].div_(-weight.numel())
        d_x = (d_normed * weight).addcmul_(rows, along).mul_(factor)
        return d_x.to(grad.dtype), d_weight, None


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See the reference."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleave: bool, out: Tensor | None = None) -> Tensor:
    """See the reference; interleaved pairs turn as complex numbers."""
    dtype = wide(x.dtype)
    cos, sin = cos[:, None].to(dtype), sin[:, None].to(dtype)
    x_wide = x.to(dtype)
    if interleave:
        if x_wide.storage_offset() % 2 or any(stride % 2 for stride in x_wide.stride()[:-1]):
            # A slice of an odd width: pairs would straddle complex numbers.
            x_wide = x_wide.clone(memory_format=torch.contiguous_format)
        pairs = torch.view_as_complex(x_wide.unflatten(-1, (-1, 2)))
        rotated = torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    else:
        first, second = x_wide.chunk(2, dim=-1)
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return _into(out, rotated.to(x.dtype))


def wide_linear(x: Tensor, weight: Tensor) -> Tensor:
    """See the reference."""
    dtype = wide(x.dtype)
    return F.linear(x.to(dtype), weight.to(dtype))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See the reference; both factors are in the inputs' dtype."""
    return F.silu(gate) * up
