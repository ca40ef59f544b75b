"""Norms, rotary embedding, SwiGLU, products that stay wide. Statistics are in float32 (or wider) whatever the input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums and statistics of `dtype` are taken: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """`weight * x / sqrt(mean(x^2) + eps)` over the last dimension, rounded to `x.dtype` before the weight.

    Shapes: x `[..., D]`, weight `[D]` -> `[..., D]`. Source: arXiv 1910.07467, section 3.
    """
    x_wide = x.to(wide(x.dtype))
    scale = torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps)
    return _into(out, weight * (x_wide * scale).to(x.dtype))


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """`rms_norm_reference` with fewer passes over memory, and a backward pass that keeps only the normalised rows.

    `out`, without gradients only, receives the result; it may be x.
    """
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
    """LayerNorm over the last dimension, as on the indexer's keys (eps 1e-6 there). Shapes as in `rms_norm`."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def rope_tables(inverse_frequencies: Sequence[float], positions: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables, float32 `[N, D/2]`, for int64 positions `[N]`.

    Angles are products of float32 numbers, as in the programs that trained the public checkpoints.
    """
    frequencies = torch.tensor(inverse_frequencies, dtype=torch.float32, device=positions.device)
    angles = positions.to(torch.float32)[:, None] * frequencies
    return angles.cos() * scale, angles.sin() * scale


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleave: bool, out: Tensor | None = None) -> Tensor:
    """Rotate the pairs of `x` by the angles of its row; the layout of the pairs is kept.

    Args:
        x: `[N, H, D]`, any float dtype; computed in float32 and rounded once.
        cos, sin: `[N, D/2]` from `rope_tables`.
        interleave: pairs are `(x0, x1), (x2, x3), ...` (GLM everywhere, DeepSeek's main attention) when true,
            `(x0, x_{D/2}), ...` (DeepSeek-V3.2's indexer) when false. There is no default: the wrong one is
            invisible below `index_topk` tokens.
        out: without gradients only: `[N, H, D]`, receives the result; it may be x.

    Source: arXiv 2104.09864, equation 34.
    """
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
    """`x @ weight.T` summed and kept in float32 (or wider): for scores whose rounding would change a choice.

    Shapes: x `[N, H]`, weight `[E, H]` -> `[N, E]`.
    """
    dtype = wide(x.dtype)
    return F.linear(x.to(dtype), weight.to(dtype))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, all three `[..., I]`. Source: arXiv 2002.05202, section 2."""
    return F.silu(gate) * up
