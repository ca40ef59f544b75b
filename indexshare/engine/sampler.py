"""Logits to tokens, with draws that depend on nothing but the request's seed and the position.

Penalties for tokens that occurred change the logits first (`engine.penalties`). The filters then apply in the order
temperature, top-k, top-p, min-p: the order of transformers' generation and so the one most published settings were
tuned with. Temperature comes first, so top-p and min-p see the flattened or sharpened distribution; top-p counts
probabilities of what top-k left, renormalised; min-p compares with the most likely token. Equal logits are ordered by
token id. Arithmetic after the logits is float64.

A draw inverts the cumulative distribution in the order of token ids with one uniform number per (seed,
position), so the same request gets the same tokens alone, in any batch, and after a preemption.
`sampler_reference` says the same in the plainest terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.engine.outputs import TokenLogprobs
from indexshare.engine.params import SamplingParams
from indexshare.engine.penalties import SeenTokens

_MASK = (1 << 64) - 1
_HEAD = 256  # candidates tried first for top-p


@dataclass(frozen=True)
class Draw:
    """One row's instructions: how to choose, and the (seed, position) that fixes the random number.

    `seen` are the tokens to penalise, None without penalties. `bias` float32 `[V]` is added to the logits behind
    that, -inf for tokens that may not come; None for nothing.
    """

    params: SamplingParams
    seed: int
    position: int
    seen: SeenTokens | None = None
    bias: Tensor | None = None

    def shaped(self, logits: Tensor) -> Tensor:
        """Logits float32 `[V]` with penalties and bias in; the input is left alone."""
        if self.seen is not None:
            logits = self.seen.penalise(logits)
        return logits if self.bias is None else logits + self.bias.to(logits.device)


def uniform(seed: int, position: int, stream: int = 0) -> float:
    """A number in [0, 1), the same for the same arguments on every machine.

    Counter-based: two rounds of the splitmix64 finaliser over seed, position and stream, the upper 53 bits
    taken.

    Args:
        seed: of the request.
        position: of the token to be drawn in its sequence.
        stream: separates several numbers for one position (a draft and its acceptance).
    """
    return (_mix(_mix(_mix(seed) ^ position) ^ (stream << 32)) >> 11) * 2.0**-53


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def non_finite_rows(logits: Tensor) -> list[int]:
    """Rows of `[B, V]` that hold NaN or an infinity."""
    # One sum is finite unless an entry is not (or finite ones overflow); only then look closer.
    if math.isfinite(float(logits.sum())):
        return []
    return (~torch.isfinite(logits).all(dim=1)).nonzero().flatten().tolist()


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token per row.

    Args:
        logits: float32 `[B, V]`, finite (see `non_finite_rows`).
        draws: one per row.

    Returns:
        B token ids. Each depends on its own row and draw only.
    """
    assert logits.ndim == 2 and logits.shape[0] == len(draws), f"{tuple(logits.shape)} for {len(draws)} draws"
    if any(draw.seen is not None or draw.bias is not None for draw in draws):
        logits = torch.stack([draw.shaped(row) for row, draw in zip(logits, draws, strict=True)])
    tokens = [0] * len(draws)
    greedy = [i for i, draw in enumerate(draws) if draw.params.greedy]
    if greedy:
        rows = logits if len(greedy) == len(draws) else logits[greedy]
        # torch documents argmax as the first of equal maxima, which is the lowest id.
        for i, token in zip(greedy, rows.argmax(dim=1).tolist(), strict=True):
            tokens[i] = token
    for i, draw in enumerate(draws):
        if not draw.params.greedy:
            tokens[i] = _draw(logits[i], draw)
    return tokens


def kept(logits: Tensor, params: SamplingParams) -> tuple[Tensor | None, Tensor]:
    """The tokens that survive the filters and their unnormalised probabilities.

    Args:
        logits: `[V]` of one row, finite.
        params: temperature above 0.

    Returns:
        ids int64 `[M]` ascending (None for all of them), weights float64 `[M]`, the largest being 1.
    """
    vocab = int(logits.shape[0])
    ids: Tensor | None = None
    if 0 < params.top_k < vocab:
        ids = _leading(logits, params.top_k)
        if params.top_p < 1:
            weights = _weights(logits[ids], params.temperature)
            ids = ids[_nucleus_length(weights, params.top_p, weights.sum())]
    elif params.top_p < 1:
        ids = _nucleus(logits, params)
    if ids is not None:
        ids = ids.sort().values
    # The most likely token is always kept, so the largest weight is 1 with or without the others.
    weights = _weights(logits if ids is None else logits[ids], params.temperature)
    if params.min_p > 0:
        alive = (weights >= params.min_p).nonzero().flatten()
        ids, weights = (alive if ids is None else ids[alive]), weights[alive]
    return ids, weights


def token_logprobs(logits: Tensor, tokens: Sequence[int], top: Sequence[int | None]) -> list[TokenLogprobs | None]:
    """Log-probabilities from the model's own distribution, before temperature and filters.

    Args:
        logits: float32 `[B, V]`.
        tokens: the chosen token of each row.
        top: how many most likely tokens to report per row; None skips the row.
    """
    found: list[TokenLogprobs | None] = []
    for row, token, count in zip(logits, tokens, top, strict=True):
        if count is None:
            found.append(None)
            continue
        values = row.double()
        values = values - values.logsumexp(dim=0)
        ids = _leading(values, min(count, int(values.shape[0]))) if count else values.new_empty(0, dtype=torch.int64)
        best = tuple(zip(ids.tolist(), values[ids].tolist(), strict=True))
        found.append(TokenLogprobs(token_id=token, logprob=float(values[token]), top=best))
    return found


def _draw(logits: Tensor, draw: Draw) -> int:
    """Invert the cumulative distribution over the ids in ascending order."""
    ids, weights = kept(logits, draw.params)
    cumulative = weights.cumsum(0)
    target = uniform(draw.seed, draw.position) * cumulative[-1:]
    # The first entry above the target; where that was rounded up to the total, the last id with a probability.
    last = torch.searchsorted(cumulative, cumulative[-1:])
    at = int(torch.minimum(torch.searchsorted(cumulative, target, right=True), last))
    return at if ids is None else int(ids[at])


def _weights(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities up to a factor, float64, the largest being 1."""
    values = logits.double()
    return ((values - values.max()) / temperature).exp()


def _leading(values: Tensor, k: int) -> Tensor:
    """Ids of the k largest of `[V]`, largest first, equal ones by id; `torch.topk` alone leaves ties open."""
    if k >= values.shape[0]:
        return values.sort(descending=True, stable=True).indices
    threshold = values.topk(k).values[-1]
    ids = (values >= threshold).nonzero().flatten()  # ascending, all ties at the threshold included
    order = values[ids].sort(descending=True, stable=True).indices[:k]
    return ids[order]


def _nucleus(logits: Tensor, params: SamplingParams) -> Tensor:
    """Ids of the smallest leading set that holds `top_p` of the whole distribution, most likely first."""
    weights = _weights(logits, params.temperature)
    total = weights.sum()
    size = _HEAD  # few tokens nearly always hold the nucleus; sorting them all is the slow exception
    while True:
        ids = _leading(logits, size)
        leading = weights[ids]
        if size >= logits.shape[0] or float(leading.sum()) >= params.top_p * float(total):
            return ids[_nucleus_length(leading, params.top_p, total)]
        size *= 16


def _nucleus_length(weights: Tensor, top_p: float, total: Tensor) -> slice:
    """The shortest leading part of descending `weights` that holds at least `top_p` of the total."""
    return slice(0, int((weights.cumsum(0) < top_p * total).sum()) + 1)
