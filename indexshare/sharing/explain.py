"""One choice explained: what each sharing group chose for one query, and how much attention its layers paid to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.config.model import ModelConfig
from indexshare.model.glm import GlmMoeDsa
from indexshare.sharing.sampled import Seen, look_at


@dataclass(frozen=True, kw_only=True)
class ServedLayer:
    """One layer's attention at the query.

    Attributes:
        layer: its number.
        held: part of its attention over all tokens that the group's selection holds; `best` that of the best tokens.
        attention: to each chosen token, in the order of the group's `chosen`, as part of that over all tokens.
    """

    layer: int
    held: float
    best: float
    attention: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class GroupChoice:
    """What one Full layer chose for the query, and the layers that it chose for, itself first.

    `chosen` are ascending positions, `scores` the indexer's scores of them; `threshold` is the best score that was not
    chosen.
    """

    full: int
    chosen: tuple[int, ...]
    scores: tuple[float, ...]
    threshold: float
    layers: tuple[ServedLayer, ...]

    def top(self, count: int) -> list[int]:
        """Places in `chosen` of the tokens with the most attention, summed over the served layers, best first."""
        total = torch.tensor([layer.attention for layer in self.layers]).sum(0)
        return total.topk(min(count, total.numel())).indices.tolist()


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """All groups at one query of a text; `tokens` are the text's, up to and including the query."""

    position: int
    tokens: tuple[int, ...]
    groups: tuple[GroupChoice, ...]


def check_position(config: ModelConfig, position: int, length: int) -> None:
    """Refuse (ValueError) a position that the window lacks, or at which everything is attended."""
    if not config.index_topk <= position < length:
        why = (
            f"it attends to all {position + 1:,} tokens"
            if 0 <= position < config.index_topk
            else "the text ends before"
        )
        raise ValueError(
            f"--explain is {position}, but {why}; give a position from {config.index_topk:,} to {length - 1:,}"
        )


def explain(model: GlmMoeDsa, window: Tensor, position: int) -> Explanation:
    """What every group chose for the query at `position` of a window, int64 `[T]`.

    Raises:
        ValueError: as `check_position`.
    """
    check_position(model.config, position, window.numel())
    seen: list[Seen] = []
    look_at(model, window[: position + 1], torch.tensor([position]), seen.append)
    groups = []
    for full in model.plan.full_layers:
        served = [each for each in seen if each.source == full]
        chosen = served[0].chosen[0]
        scores = _scores(served[0])
        left = scores.clone()
        left[chosen] = -torch.inf
        groups.append(
            GroupChoice(
                full=full,
                chosen=tuple(chosen.tolist()),
                scores=tuple(scores[chosen].tolist()),
                threshold=float(left.max()),
                layers=tuple(_served(each, chosen) for each in served),
            )
        )
    return Explanation(position=position, tokens=tuple(window[: position + 1].tolist()), groups=tuple(groups))


def _scores(seen: Seen) -> Tensor:
    """The indexer's scores of all tokens, `[T]`."""
    assert seen.index is not None
    dots = (seen.index.q[0] @ seen.index.keys.t()).float().relu_()
    return seen.index.weights[0] @ dots


def _served(seen: Seen, chosen: Tensor) -> ServedLayer:
    attention = seen.attention[0]
    paid = attention[chosen]
    best = attention.topk(chosen.numel(), sorted=False).values.sum()
    return ServedLayer(layer=seen.layer, held=float(paid.sum()), best=float(best), attention=tuple(paid.tolist()))
