"""A text that shows differences: random tokens, more of them than a query selects."""

from __future__ import annotations

import torch
from torch import Tensor

from indexshare.config.model import ModelConfig

BEYOND = 24  # tokens after the first `index_topk`


def probe_tokens(config: ModelConfig, *, tokens: int | None = None, seed: int = 0) -> Tensor:
    """Random token ids, int64 `[index_topk + BEYOND]` unless `tokens` says otherwise; the same for the same seed.

    Raises:
        ValueError: the model's context is too short for its own selection to matter.
    """
    count = config.index_topk + BEYOND if tokens is None else tokens
    if count > config.max_position_embeddings:
        raise ValueError(
            f"{count} tokens are needed to see the selection, the model's context is {config.max_position_embeddings}; "
            "give a smaller --topk"
        )
    return torch.randint(config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))
