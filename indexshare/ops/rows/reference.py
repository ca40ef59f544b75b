"""Norms, rotary embedding, SwiGLU, products that stay wide, as their formulas read: float32 (or wider), rounded once.

Compare every fast path with these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from indexshare.ops.precision import wide


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """`weight * x / sqrt(mean(x^2) + eps)` over the last dimension, rounded to `x.dtype` before the weight.

    Shapes: x `[..., D]`, weight `[D]` -> `[..., D]`. `out`, without gradients only, receives the result; it may be x.
    Source: arXiv 1910.07467, section 3.
    """
    x_wide = x.to(wide(x.dtype))
    scale = torch.rsqrt(x_wide.square().mean(-1, keepdim=True) + eps)
    return _into(out, weight * (x_wide * scale).to(x.dtype))


def _into(out: Tensor | None, result: Tensor) -> Tensor:
    return result if out is None else out.copy_(result)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """`weight * (x - mean(x)) / sqrt(var(x) + eps) + bias` over the last dimension, as on the indexer's keys.

    Shapes: x `[..., D]`, weight and bias `[D]` -> `[..., D]`. Source: arXiv 1607.06450, section 3.
    """
    x_wide, dtype = x.to(wide(x.dtype)), wide(x.dtype)
    centred = x_wide - x_wide.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (normed * weight.to(dtype) + bias.to(dtype)).to(x.dtype)


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
    dtype, half = wide(x.dtype), x.shape[-1] // 2
    cos, sin, x_wide = cos[:, None].to(dtype), sin[:, None].to(dtype), x.to(dtype)
    if interleave:
        first, second = x_wide[..., 0::2], x_wide[..., 1::2]
    else:
        first, second = x_wide[..., :half], x_wide[..., half:]
    turned = (first * cos - second * sin, second * cos + first * sin)
    rotated = torch.stack(turned, dim=-1).flatten(-2) if interleave else torch.cat(turned, dim=-1)
    return _into(out, rotated.to(x.dtype))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`, all three `[..., I]`. Source: arXiv 2002.05202, section 2."""
    dtype = wide(gate.dtype)
    return (F.silu(gate.to(dtype)) * up.to(dtype)).to(gate.dtype)


def wide_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` summed and kept in float32 (or wider): for scores whose rounding would change a choice.

    Shapes: x `[N, H]`, weight `[E, H]` -> `[N, E]`.
    """
    dtype = wide(x.dtype)
    return x.to(dtype) @ weight.to(dtype).t()
