"""A control, not an indexer: the choice that ignores all scores and keeps the most recent tokens.

What a model can still do with it is what it does without finding anything far away. `dispatch.force("recent")` puts it
in the place of the selection, in every layer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def select_topk(q: Tensor, weights: Tensor, keys: Tensor, positions: Tensor, topk: int) -> Tensor:
    """The `topk` keys that end at each query's own, int64 `[Q, topk]`, ascending, padded with -1 at the end.

    Arguments as in the reference; only `positions` int64 `[Q]` and `topk` matter.
    """
    first = (positions - topk + 1).clamp_min(0)
    chosen = first[:, None] + torch.arange(topk, device=positions.device)
    return chosen.masked_fill(chosen > positions[:, None], -1)
