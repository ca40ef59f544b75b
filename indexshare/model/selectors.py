"""What chooses the tokens that a query attends to, once its context is longer than the selection.

`content` is the lightning indexer's choice. A selector is a function: give it to one forward pass, or register the kind
that `config.variant.selection` names, and models are built with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from indexshare import ops
from indexshare.config import ModelConfig
from indexshare.ops.coded.rows import Rows


class Selector(Protocol):
    """Chooses for queries of one sequence that have more than `topk` keys each; arguments as in `ops.select_topk`.

    The result has one row of ascending positions per query, int64 `[Q, k]` with k at most `topk`, or one for each of
    g groups of attention heads, `[Q, g, k]`; -1 stands for none and comes last.
    """

    def __call__(self, q: Tensor, weights: Tensor, keys: Tensor, positions: Tensor, topk: int) -> Tensor:
        """Positions of the chosen keys."""


def content(q: Tensor, weights: Tensor, keys: Rows, positions: Tensor, topk: int) -> Tensor:
    """The keys with the best index scores; the keys also as a cache keeps them."""
    return ops.select_topk(q, weights, keys, positions, topk)


def recent(q: Tensor, weights: Tensor, keys: Tensor, positions: Tensor, topk: int) -> Tensor:
    """A control: the `topk` keys that end at each query's own, whatever their scores.

    What a model can still do with it is what it does without finding anything far away.
    """
    first = (positions - topk + 1).clamp_min(0)
    chosen = first[:, None] + torch.arange(topk, device=positions.device)
    return chosen.masked_fill(chosen > positions[:, None], -1)


_KINDS: dict[str, Callable[[ModelConfig], Selector]] = {}


def register(kind: str, make: Callable[[ModelConfig], Selector]) -> None:
    """Add a kind of selection; `make` gives a model's selector, whose settings are `config.variant.selection`."""
    _KINDS[kind] = make


def build_selector(config: ModelConfig) -> Selector:
    """The selector that a configuration names.

    Raises:
        ValueError: nothing of that kind is registered here.
    """
    kind = config.variant.selection.kind
    if kind not in _KINDS:
        raise ValueError(f"no selection of the kind {kind!r} is registered; there are {', '.join(_KINDS)}")
    return _KINDS[kind](config)


register("content", lambda config: content)
