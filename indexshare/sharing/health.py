"""How an indexer does its work: how sure its choices are, how near it is to the attention, which heads take part.

Shape letters: S queries, T keys, H index heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.sharing.sampled import Seen

DEAD_SHARE = 1e-3  # a head with less than this part of what all heads add up to decides nothing
_CHUNK_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class Health:
    """Means over queries of one Full layer's indexer.

    Attributes:
        ties: queries whose last chosen key has the same score as the first that is not, so that position decides.
        tied_keys: keys with the score of the last one chosen, itself included.
        zeros: part of the keys with a score of exactly 0 (no head fires).
        margin: score of the last chosen key above the next one, in standard deviations of the query's scores.
        entropy: of the softmax of the scores, in nats; `attention_entropy` that of the layer's attention.
        kl: of the attention to the softmax of the scores, in nats: the indexer's loss.
        active: per head, part of the (query, key) pairs at which it fires.
        share: per head, its part of the sum of absolute contributions to the scores.
    """

    ties: float
    tied_keys: float
    zeros: float
    margin: float
    entropy: float
    attention_entropy: float
    kl: float
    active: tuple[float, ...]
    share: tuple[float, ...]

    @property
    def dead_heads(self) -> tuple[int, ...]:
        """Heads that decide nothing."""
        return tuple(head for head, share in enumerate(self.share) if share < DEAD_SHARE)


NAMES = ("ties", "tied_keys", "zeros", "margin", "entropy", "attention_entropy", "kl")


def health_sums(seen: Seen, topk: int) -> tuple[Tensor, Tensor]:
    """Sums over the queries of a Full layer: `NAMES` as float64 `[7]`, and heads `[2, H]` (fired, contributed)."""
    assert seen.index is not None
    width = seen.index.keys.shape[0]
    rows = max(1, _CHUNK_BYTES // (4 * seen.index.q.shape[1] * width))
    figures = torch.zeros(len(NAMES), dtype=torch.float64)
    heads = torch.zeros(2, seen.index.q.shape[1], dtype=torch.float64)
    for start in range(0, seen.queries.numel(), rows):
        part = slice(start, start + rows)
        scores, fired = _scores(seen, part)
        figures += _figures(scores, seen.attention[part], seen.queries[part], topk)
        heads += fired
    return figures, heads


def _scores(seen: Seen, part: slice) -> tuple[Tensor, Tensor]:
    """Scores of some queries `[s, T]`, -inf where the key comes later; and each head's sums `[2, H]`.

    Heads are counted in parts of each query, so that late queries with many keys weigh no more than early ones.
    """
    assert seen.index is not None
    at = seen.queries[part]
    hidden = torch.arange(seen.index.keys.shape[0], device=at.device) > at[:, None]
    dots = (seen.index.q[part] @ seen.index.keys.t()).float().relu_().masked_fill_(hidden[:, None], 0.0)
    fired = (dots > 0).sum(-1) / (at[:, None] + 1)
    parts = dots.mul_(seen.index.weights[part][:, :, None])
    contributed = parts.abs().sum(-1)
    contributed /= contributed.sum(1, keepdim=True).clamp_min(1e-30)
    scores = parts.sum(1).masked_fill_(hidden, -torch.inf)
    return scores, torch.stack((fired.double().sum(0), contributed.double().sum(0))).cpu()


def _figures(scores: Tensor, attention: Tensor, at: Tensor, topk: int) -> Tensor:
    """Sums of `NAMES` over the rows."""
    best = scores.topk(topk + 1, dim=-1).values
    last, following = best[:, topk - 1], best[:, topk]
    keys = (at + 1).double()
    finite = scores.masked_fill(scores.isinf(), 0.0).double()
    mean = finite.sum(-1) / keys
    spread = ((finite.square().sum(-1) / keys) - mean.square()).clamp_min(1e-30).sqrt()
    log_q = scores.log_softmax(-1)
    log_q = log_q.masked_fill(log_q.isinf(), 0.0)
    entropy = -(scores.softmax(-1) * log_q).sum(-1)
    own = -torch.xlogy(attention, attention).sum(-1)
    each = (
        (last == following).double(),
        (scores == last[:, None]).sum(-1).double(),
        (scores == 0).sum(-1).double() / keys,
        (last - following).double() / spread,
        entropy.double(),
        own.double(),
        -(attention * log_q).sum(-1).double() - own.double(),
    )
    return torch.stack([values.sum() for values in each]).cpu()


def as_health(figures: Tensor, heads: Tensor, queries: int) -> Health:
    """Means from sums."""
    values = dict(zip(NAMES, (figures / queries).tolist(), strict=True))
    active, share = (heads / queries).tolist()
    return Health(**values, active=tuple(active), share=tuple(share))
