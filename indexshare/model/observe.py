"""Look at activations without touching model code: the forward pass offers records to an observer it is given."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from indexshare.cache.view import BatchView
from indexshare.model.selection import Selection


@dataclass(frozen=True)
class IndexTensors:
    """Indexer of one Full layer: q `[N, H, D]`, weights float32 `[N, H]` (scales folded in), keys `[N, D]`."""

    q: Tensor
    weights: Tensor
    keys: Tensor


@dataclass(frozen=True)
class AttentionRecord:
    """One layer's attention inputs.

    `queries` `[N, A, R]` are absorbed queries, `latents` `[N, R]` this batch's latent rows (with grouped-query
    attention the keys of all groups in one row, and zeros in the queries where those of other groups are), `scale` the
    softmax scale; `index` is None in Shared layers; `source` is the Full layer whose selection this layer attends to.
    """

    layer: int
    source: int
    view: BatchView
    selection: Selection
    queries: Tensor
    latents: Tensor
    scale: float
    index: IndexTensors | None


class Observer:
    """Does nothing; subclasses override what they want to see. Called once per layer and forward pass."""

    # Absorbed queries of every row cost a product that inference does not need: ask for them.
    wants_attention = False

    def attention(self, record: AttentionRecord) -> None:
        """Attention inputs of a layer; called only when `wants_attention` is true."""

    def routing(self, layer: int, expert_ids: Tensor) -> None:
        """Expert ids `[N, k]` that a layer's tokens were routed to."""
