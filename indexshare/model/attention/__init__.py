"""Kinds of attention, interchangeable behind `base.Attention`: an open registry.

A kind's settings and its rows of the table of layers are in `config` (`config.layers.register_attention`).
"""

from __future__ import annotations

from collections.abc import Callable

from indexshare.config import ModelConfig
from indexshare.model.attention.base import Attention
from indexshare.model.attention.grouped import GroupedQuery
from indexshare.model.attention.mla import MLA

Build = Callable[[ModelConfig, int, int], Attention]
_KINDS: dict[str, Build] = {}


def register(kind: str, build: Build) -> None:
    """Add a kind of attention: `build(config, layer, source)`, usually the class, gives that of one layer."""
    _KINDS[kind] = build


def build_attention(config: ModelConfig, layer: int, source: int) -> Attention:
    """The attention that a configuration names, for one layer.

    Raises:
        ValueError: nothing of that kind is registered here.
    """
    kind = config.variant.attention.kind
    if kind not in _KINDS:
        raise ValueError(f"no attention of the kind {kind!r} is registered; there are {', '.join(_KINDS)}")
    return _KINDS[kind](config, layer, source)


register("mla", MLA)
register("gqa", GroupedQuery)
