"""Which queries the indexer's loss counts, and over which keys."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class KLRows:
    """The candidate keys of some queries, given in one of two ways.

    Either `slots` int64 `[M, k]` lists the rows of the keys for each query, or the candidates of query `rows[i]`
    are all packed rows from `first` up to and including `rows[i]`.
    """

    rows: Tensor
    first: int = 0
    slots: Tensor | None = None
