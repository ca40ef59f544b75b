"""One table of a model's layers: what each layer's cache keeps. Plain Python, no torch.

A kind of attention is a row of an open registry (`register_attention`): it says its cache streams. What every kind
has in common, the indexer of a Full layer, is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from indexshare.config.model import ModelConfig

INDEX_KEYS = "index_keys"  # the indexer's stream, whatever the attention


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Rows that one layer's cache keeps, one for each token.

    Attributes:
        name: how the model writes and reads them.
        width: values of a row.
        precise: how many of them, the last ones, a codec of few bits should keep in 16 bits (a rotary key).
    """

    name: str
    width: int
    precise: int = 0


@dataclass(frozen=True, kw_only=True)
class AttentionKind:
    """What a kind of attention brings to a layer.

    Attributes:
        name: of the kind.
        streams: what it keeps of every token, for a configuration.
    """

    name: str
    streams: Callable[[ModelConfig], tuple[Stream, ...]]


_KINDS: dict[str, AttentionKind] = {}


def register_attention(kind: AttentionKind) -> None:
    """Add a kind of attention; a later one of the same name replaces it."""
    _KINDS[kind.name] = kind


def attention_kind(config: ModelConfig) -> AttentionKind:
    """The attention of a model."""
    return _KINDS["mla"]


def has_indexer(config: ModelConfig, layer: int) -> bool:
    """Whether a layer chooses for itself: Full layers and the draft layer, index `num_hidden_layers`."""
    return layer == config.num_hidden_layers or config.share_plan.is_full(layer)


def layer_streams(config: ModelConfig, layer: int) -> tuple[Stream, ...]:
    """What the cache of `layer` (the draft layer is `num_hidden_layers`) keeps of every token."""
    own = attention_kind(config).streams(config)
    index = (Stream(name=INDEX_KEYS, width=config.index_head_dim),) if has_indexer(config, layer) else ()
    return own + index
