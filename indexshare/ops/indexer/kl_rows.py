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


@dataclass(frozen=True)
class Teacher:
    """One layer whose attention is learned.

    `queries` `[N, A, R]` are absorbed, `latents` `[N, R]`, `scale` is that of the softmax; `weight` is the layer's part
    in a mean over several, which add up to one.
    """

    queries: Tensor
    latents: Tensor
    scale: float
    weight: float = 1.0
