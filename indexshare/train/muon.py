"""Muon: momentum whose update is orthogonalised, with Muon Split for the up-projections of MLA."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Quintic Newton-Schulz coefficients of the original Muon (K. Jordan, 2024): five steps drive singular values, down to
# a hundredth of the largest, into 0.68..1.21 and do not converge further, which is enough for an update direction.
_A, _B, _C = 3.4445, -4.7750, 2.0315
# RMS of an AdamW update that Muon is matched to (Moonlight, arXiv 2502.16982), so lr and weight decay carry over.
_ADAMW_RMS = 0.2


def orthogonalize(matrices: Tensor, *, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Nearest orthogonal matrices, approximately: singular values of each become about one.

    Args:
        matrices: float [..., m, n]; leading dimensions are separate matrices.
        steps: Newton-Schulz iterations.
        dtype: of the products; bfloat16 is enough for a direction.

    Returns:
        float32 [..., m, n].
    """
    x = matrices.to(torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * (gram @ gram)) @ x
    return (x.mT if tall else x).to(torch.float32)


def split_rows(sizes: tuple[int, ...], heads: int = 1) -> Callable[[Tensor], list[Tensor]]:
    """A view of a matrix as parts to be orthogonalised separately.

    The rows are `heads` equal blocks, and each block is cut in `sizes` rows: for `kv_b_proj` with sizes
    (qk_nope, v) this gives per head its key rows and its value rows (Muon Split, arXiv 2602.15763).

    Returns:
        function [..., heads * sum(sizes), n] -> list of [..., heads, size, n].
    """

    def parts(matrix: Tensor) -> list[Tensor]:
        rows = matrix.shape[-2]
        assert rows == heads * sum(sizes), f"{rows} rows do not hold {heads} heads of {sizes}"
        blocks = matrix.unflatten(-2, (heads, sum(sizes)))  # a view: updates are written through it
        return list(blocks.split(list(sizes), dim=-2))

    return parts


class Muon(torch.optim.Optimizer):
    """Momentum with Nesterov, orthogonalised per matrix.

    The update of an m x n part is 0.2 * sqrt(max(m, n)) * orthogonal, whose root mean square is that of a typical
    AdamW update; weight decay is decoupled. Parts of one shape are orthogonalised in one batch.

    Args:
        params: parameters or groups; a group may give `split`, from `split_rows`, as a function of the matrix.
        lr: step length, on AdamW's scale.
        momentum: decay of the gradient average.
        weight_decay: decoupled decay per step, times lr.
        ns_dtype: dtype of the Newton-Schulz products.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        ns_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "split": None})
        self._ns_dtype = ns_dtype
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim < 2:
                    raise ValueError(f"Muon updates matrices, a parameter has shape {tuple(p.shape)}; use AdamW")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        by_shape: dict[tuple[int, int], list[tuple[dict[str, Any], Tensor, Tensor]]] = {}
        for group in self.param_groups:
            split = group["split"] or (lambda matrix: [matrix])
            for p in group["params"]:
                if p.grad is None:
                    continue
                direction = self._direction(p, p.grad, group["momentum"])
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                for target, part in zip(split(p), split(direction), strict=True):
                    by_shape.setdefault((part.shape[-2], part.shape[-1]), []).append((group, target, part))
        for (rows, columns), items in by_shape.items():
            flat = [part.reshape(-1, rows, columns) for _, _, part in items]
            updates = orthogonalize(torch.cat(flat), dtype=self._ns_dtype)
            scale = _ADAMW_RMS * math.sqrt(max(rows, columns))
            for (group, target, part), update in zip(items, updates.split([len(f) for f in flat]), strict=True):
                target.add_(update.reshape(part.shape), alpha=-group["lr"] * scale)
        return loss

    def _direction(self, p: Tensor, grad: Tensor, momentum: float) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        buffer = state["momentum"]
        buffer.lerp_(grad, 1.0 - momentum)
        return grad.lerp(buffer, momentum)
