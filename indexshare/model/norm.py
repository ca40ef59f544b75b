"""The two norms as modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indexshare import ops


class RMSNorm(nn.Module):
    """`ops.rms_norm` with a learned weight `[width]`."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `[..., width]`."""
        return ops.rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Module):
    """`ops.layer_norm` with learned weight and bias `[width]`."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension of `[..., width]`."""
        return ops.layer_norm(x, self.weight, self.bias, self.eps)
