"""Low-rank training of indexers (LoRA, arXiv 2106.09685): a matrix stands still, a product of two thin ones is learned.

Saving, exporting and running see one matrix, for `weight` is the sum; `merged` makes it plain again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indexshare.model.indexer import Indexer

MATRICES = ("wq_b", "wk", "weights_proj")
BASE, DOWN, UP = "base", "low_rank_down", "low_rank_up"


class LowRankLinear(nn.Module):
    """`x @ (base + up @ down).T`: `down` `[rank, inputs]` begins at random, `up` `[outputs, rank]` at zero."""

    def __init__(self, base: nn.Parameter, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = base.shape
        down = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
        self.base = nn.Parameter(base.detach(), requires_grad=False)
        self.low_rank_down = nn.Parameter(down.to(base))
        self.low_rank_up = nn.Parameter(base.detach().new_zeros(outputs, rank))

    @property
    def weight(self) -> Tensor:
        """The matrix that this stands for, `[outputs, inputs]`."""
        return self.base + self.low_rank_up @ self.low_rank_down

    def forward(self, x: Tensor) -> Tensor:
        """Shapes `[..., inputs]` -> `[..., outputs]`."""
        return F.linear(x, self.base) + F.linear(F.linear(x, self.low_rank_down), self.low_rank_up)


def add_low_rank(model: nn.Module, rank: int, seed: int) -> None:
    """Put `LowRankLinear` in the place of every indexer's matrices; the model computes the same until it is trained.

    A matrix that has a lower rank by itself, as the head weights' may, gets that.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, Indexer):
            for name in MATRICES:
                matrix = getattr(module, name).weight
                setattr(module, name, LowRankLinear(matrix, min(rank, *matrix.shape), generator))


def is_low_rank(name: str) -> bool:
    """Whether a parameter is one of the thin matrices."""
    return name.endswith((f".{DOWN}", f".{UP}"))


def split_low_rank(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights by the names of a plain model, and the thin matrices apart."""
    thin = {name: tensor for name, tensor in weights.items() if is_low_rank(name)}
    based = {name.removesuffix(f".{UP}") for name in thin if name.endswith(f".{UP}")}
    plain = {}
    for name, tensor in weights.items():
        if name not in thin:
            owner, _, last = name.rpartition(".")
            plain[f"{owner}.weight" if last == BASE and owner in based else name] = tensor
    return plain, thin


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a plain model, the products added to their matrices."""
    plain, thin = split_low_rank(weights)
    for name in [name for name in thin if name.endswith(f".{UP}")]:
        owner = name.removesuffix(f".{UP}")
        plain[f"{owner}.weight"] = plain[f"{owner}.weight"] + thin[name] @ thin[f"{owner}.{DOWN}"]
    return plain
