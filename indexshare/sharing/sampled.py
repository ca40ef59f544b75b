"""What each layer did for some queries of a window: the tokens chosen for it, and where its attention would go.

Attention is that over all earlier tokens, averaged over heads: what an indexer is trained towards. It is computed for
the queries asked for, in chunks, and gone when the layer has been looked at.
Shape letters: S queries, T keys (all of the window up to the last query), A attention heads, H index heads, k chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.cache.view import InFlightView
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import AttentionRecord, IndexTensors, Observer
from indexshare.sharing.windows import check_shows_attention

_CHUNK_BYTES = 32 << 20  # of one chunk of queries, all heads


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One layer of a pass over one window.

    Attributes:
        layer: its number; `source` is the Full layer that chose for it.
        queries: int64 `[S]`, positions, ascending.
        chosen: int64 `[S, k]`, ascending positions.
        attention: float32 `[S, T]`, rows sum to one; zero beyond the query.
        index: the indexer's tensors of these queries and of all keys, in Full layers.
    """

    layer: int
    source: int
    queries: Tensor
    chosen: Tensor
    attention: Tensor
    index: IndexTensors | None


def sample_queries(length: int, first: int, count: int, shift: float) -> Tensor:
    """At most `count` positions from `first` to `length - 1`, evenly spread; `shift` in [0, 1) moves them all."""
    room = length - first
    if count >= room:
        return torch.arange(first, length)
    places = (torch.arange(count, dtype=torch.float64) + shift) * (room / count)
    return first + places.long()


def attention_over_all(queries: Tensor, latents: Tensor, positions: Tensor, scale: float) -> Tensor:
    """Softmax attention over all tokens up to each query, mean over heads.

    Args:
        queries: `[S, A, R]`; latents: `[T, R]`; positions: int64 `[S]`, each below T.
        scale: of the softmax.

    Returns:
        float32 `[S, T]`.
    """
    columns = torch.arange(latents.shape[0], device=latents.device)
    rows = max(1, _CHUNK_BYTES // (4 * queries.shape[1] * latents.shape[0]))
    parts = []
    for q, at in zip(queries.split(rows), positions.split(rows), strict=True):
        logits = (q @ latents.t()).float().mul_(scale)
        logits.masked_fill_(columns > at[:, None, None], -torch.inf)
        parts.append(logits.softmax(-1).mean(1))
    return torch.cat(parts)


class Sampler(Observer):
    """Gives `look` every trunk layer of a pass over one window, as it passes.

    Args:
        queries: int64 `[S]`, positions of the window that have a selection.
        look: takes what was seen.
    """

    wants_attention = True

    def __init__(self, queries: Tensor, look: Callable[[Seen], None]) -> None:
        self._queries, self._look = queries, look

    def attention(self, record: AttentionRecord) -> None:
        """Compute attention of the queries, and hand it on with what was chosen."""
        chosen, rows = record.selection.positions, self._queries
        if chosen.dim() != 2:
            raise ValueError("layers choose for groups of heads apart; one choice for a layer is what can be compared")
        last = int(rows[-1]) + 1
        index = record.index
        self._look(
            Seen(
                layer=record.layer,
                source=record.source,
                queries=rows,
                chosen=chosen[rows - int(record.selection.rows[0])],
                attention=attention_over_all(record.queries[rows], record.latents[:last], rows, record.scale),
                index=None if index is None else IndexTensors(index.q[rows], index.weights[rows], index.keys[:last]),
            )
        )


@torch.no_grad()
def look_at(model: GlmMoeDsa, window: Tensor, queries: Tensor, look: Callable[[Seen], None]) -> None:
    """Run the model over one window, int64 `[T]`, and show `look` what its layers did for the queries.

    Raises:
        ValueError: attention of a kind that shows nothing.
    """
    check_shows_attention(model.config)
    device = model.embed_tokens.weight.device
    ids = window.to(device)
    model.trunk(ids, InFlightView([ids.numel()], device), observer=Sampler(queries.to(device), look))
