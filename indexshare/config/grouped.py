"""Grouped-query attention as rows of the table of layers. Source: arXiv 2305.13245, section 2."""

from __future__ import annotations

from dataclasses import replace

from indexshare.config.layers import AttentionTable, LayerTensor, Role, Stream, register_attention
from indexshare.config.model import ModelConfig
from indexshare.config.variant import GroupedAttention

KEYS, VALUES = "keys", "values"


def settings_of(config: ModelConfig) -> GroupedAttention:
    """The settings of a model with this attention."""
    settings = config.variant.attention
    assert isinstance(settings, GroupedAttention)
    return settings


class GroupedTable(AttentionTable):
    """Keys and values of a token are one row each, the heads one after the other."""

    def tensors(self, config: ModelConfig) -> tuple[LayerTensor, ...]:
        """Four projections, norms of each head's queries and keys, biases."""
        own, hidden, heads = settings_of(config), config.hidden_size, config.num_attention_heads
        width = own.head_dim
        rows = []
        for name, count in (("q", heads), ("k", own.kv_heads), ("v", own.kv_heads)):
            rows.append(replace(_row(f"{name}_proj.weight", (count * width, hidden)), heads=count))
            if own.qkv_bias:
                rows.append(_row(f"{name}_proj.bias", (count * width,), Role.BIAS))
        rows.append(replace(_row("o_proj.weight", (hidden, heads * width)), residual=True))
        if own.output_bias:
            rows.append(_row("o_proj.bias", (hidden,), Role.BIAS))
        if own.qk_norm:
            rows += [_row(f"{name}_norm.weight", (width,), Role.NORM) for name in ("q", "k")]
        return tuple(rows)

    def streams(self, config: ModelConfig) -> tuple[Stream, ...]:
        """Turned keys, and values."""
        own = settings_of(config)
        return tuple(Stream(name=name, width=own.kv_heads * own.head_dim) for name in (KEYS, VALUES))

    def index_inputs(self, config: ModelConfig) -> int:
        """The layer's input itself."""
        return config.hidden_size

    def pair_products(self, config: ModelConfig, *, absorbed: bool) -> int:
        """Scores and weighted sum; there is one form."""
        return 2 * config.num_attention_heads * settings_of(config).head_dim

    def row_values(self, config: ModelConfig) -> int:
        """Queries and what they attended, each with a copy, keys and values."""
        own = settings_of(config)
        return (4 * config.num_attention_heads + 4 * own.kv_heads) * own.head_dim

    def key_values(self, config: ModelConfig) -> int:
        """Nothing: keys and values are read as they lie."""
        return 0

    def kept_values(self, config: ModelConfig) -> int:
        """Queries, keys, values and what was attended."""
        own = settings_of(config)
        return (2 * config.num_attention_heads + 2 * own.kv_heads) * own.head_dim


def _row(name: str, shape: tuple[int, ...], role: Role = Role.MATRIX) -> LayerTensor:
    return LayerTensor(name=f"self_attn.{name}", shape=shape, part="attention", role=role)


register_attention(GroupedAttention, GroupedTable())
