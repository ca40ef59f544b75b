"""Random operands in a model's shapes, for kernels measured and checked alone.

Shape letters: Q queries, H index heads, D index width, T keys, A heads, R latent width, k selected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from indexshare.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class IndexOperands:
    """Arguments of `ops.select_topk`: the last Q positions of T, all weights positive so that scores add up."""

    q: Tensor  # [Q, H, D]
    weights: Tensor  # [Q, H] float32
    keys: Tensor  # [T, D]
    positions: Tensor  # int64 [Q]
    topk: int

    @classmethod
    def random(cls, config: ModelConfig, dtype: torch.dtype, rows: int, keys: int, seed: int = 0) -> IndexOperands:
        """Normal queries and keys."""
        generator = torch.Generator().manual_seed(seed)
        heads, width = config.index_n_heads, config.index_head_dim
        return cls(
            q=torch.randn(rows, heads, width, generator=generator).to(dtype),
            weights=torch.rand(rows, heads, generator=generator),
            keys=torch.randn(keys, width, generator=generator).to(dtype),
            positions=torch.arange(keys - rows, keys),
            topk=config.index_topk,
        )

    def __iter__(self) -> Any:
        return iter((self.q, self.weights, self.keys, self.positions, self.topk))


@dataclass(frozen=True, kw_only=True)
class AttentionOperands:
    """Arguments of `ops.sparse_mla`."""

    q: Tensor  # [Q, A, R]
    pool: Tensor  # [T, R]
    slots: Tensor  # int64 [Q, k]
    scale: float
    value_dim: int

    @classmethod
    def random(
        cls, config: ModelConfig, dtype: torch.dtype, slots: Tensor, keys: int, seed: int = 1
    ) -> AttentionOperands:
        """Normal queries and latents, for slots that an indexer chose; logits of deviation 1."""
        generator = torch.Generator().manual_seed(seed)
        width = config.latent_dim
        return cls(
            q=torch.randn(slots.shape[0], config.num_attention_heads, width, generator=generator).to(dtype),
            pool=torch.randn(keys, width, generator=generator).to(dtype),
            slots=slots,
            scale=width**-0.5,
            value_dim=config.kv_lora_rank,
        )

    def __iter__(self) -> Any:
        return iter((self.q, self.pool, self.slots, self.scale, self.value_dim))
