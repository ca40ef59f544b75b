"""What a Full layer chose, in the form in which Shared layers and the draft layer's later steps reuse it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.cache.view import BatchView, Span

# A context length no sequence reaches: full attention everywhere.
FULL_ATTENTION = 1 << 60


@dataclass(frozen=True)
class Selection:
    """The tokens chosen for the queries whose context exceeds the full-attention limit.

    The rule is per query, so it does not depend on chunking: a query at position p attends to everything when
    `p + 1 <= limit`, else to its row here. `rows` int64 `[M]` are packed rows of the batch, ascending;
    `positions` int64 `[M, k]` are ascending positions in the query's own sequence; `slots` int64 `[M, k]` are the
    same tokens as rows of the cache pool, equal for all layers. Where g groups of attention heads have a choice each,
    both are `[M, g, k]`: the first group is that of the first heads.
    """

    limit: int
    rows: Tensor
    positions: Tensor
    slots: Tensor

    @property
    def num_rows(self) -> int:
        """Queries with a selection, M."""
        return self.rows.numel()

    @property
    def groups(self) -> int:
        """Groups of heads with a choice of their own, g."""
        return 1 if self.slots.dim() == 2 else self.slots.shape[1]


def dense_rows(span: Span, limit: int) -> int:
    """How many leading rows of a span attend to everything: those at positions below `limit`."""
    return min(max(limit - span.past, 0), span.length)


def sparse_rows(view: BatchView, limit: int) -> Tensor:
    """Packed rows, int64 `[M]`, whose context exceeds `limit`."""
    ranges = [torch.arange(s.start + dense_rows(s, limit), s.stop) for s in view.spans]
    return torch.cat(ranges).to(view.positions.device) if ranges else torch.empty(0, dtype=torch.int64)
