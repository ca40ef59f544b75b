"""In which dtype sums and statistics are taken."""

from __future__ import annotations

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums and statistics of `dtype` are taken: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)
