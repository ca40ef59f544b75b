"""Floating-point operations and bytes of inference, by stage, counted from shapes; nothing is run.

These formulas exist only here. A multiplication with its addition counts as two operations. Norms, rotary
turns, softmax, activations and the choice of the largest scores are left out, as is usual. Bytes are what must be
read from memory at least once; what does not fit in the processor's caches may be read again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from indexshare.config import ModelConfig
from indexshare.config.arguments import plain_integer
from indexshare.config.layers import (
    INDEX_KEYS,
    LayerTensor,
    Role,
    attention_table,
    indexer_layers,
    indexer_tensors,
    layer_streams,
)
from indexshare.planner.memory import RowBytes, count_parameters


@dataclass(frozen=True, kw_only=True)
class Work:
    """What each stage of the trunk needs, in operations or in bytes, over all layers.

    Attributes:
        projections: latent, query and output projections of attention; its up-projections in either form.
        indexer: projections of the indexers.
        scores: index queries against index keys.
        attention: queries against the chosen (or all) latents, and their weighted sum.
        feed_forward: dense layers, router, routed and shared experts.
        head: hidden state to logits.
    """

    projections: int = 0
    indexer: int = 0
    scores: int = 0
    attention: int = 0
    feed_forward: int = 0
    head: int = 0

    @property
    def total(self) -> int:
        """All stages."""
        return sum(getattr(self, stage.name) for stage in fields(self))

    @property
    def largest(self) -> tuple[str, float]:
        """The stage with most of it, and its share of the total."""
        name = max((stage.name for stage in fields(self)), key=lambda name: getattr(self, name))
        return name, getattr(self, name) / self.total

    def to_dict(self) -> dict[str, int]:
        """Stages and total by name."""
        return {stage.name: getattr(self, stage.name) for stage in fields(self)} | {"total": self.total}


def score_flops(config: ModelConfig, pairs: int) -> int:
    """Operations of one indexer over `pairs` of a query and a key: a dot product in every head."""
    return 2 * config.index_n_heads * config.index_head_dim * pairs


def attention_flops(config: ModelConfig, pairs: int, *, absorbed: bool = True) -> int:
    """Operations of one layer's attention over `pairs` of a query and a key, all heads.

    Absorbed queries meet latents (with the rope key) and sum latents; in the expanded form every head has a key and a
    value of its own. An attention without latents has one form.
    """
    return 2 * attention_table(config).pair_products(config, absorbed=absorbed) * pairs


def token_flops(config: ModelConfig, context: int, *, full_attention: bool = False, absorbed: bool = True) -> Work:
    """Operations for one token that sees `context` keys, itself included: a decode step at batch 1.

    Args:
        config: sizes and share plan; `config.replace(indexer_types=("full",) * layers)` is the model without sharing.
        context: keys, at least 1.
        full_attention: no selection at any length; index keys are still made, for the cache.
        absorbed: form of the attention, see `attention_flops`.

    Raises:
        ValueError: no context.
    """
    _check(context, 1)
    return _flops(config, context - 1, 1, full_attention=full_attention, absorbed=absorbed)


def prefill_flops(
    config: ModelConfig, tokens: int, *, past: int = 0, full_attention: bool = False, absorbed: bool = True
) -> Work:
    """Operations for `tokens` tokens after `past` ones, of which only the last one's logits are computed.

    Arguments and errors as in `token_flops`.
    """
    _check(tokens, 1)
    _check(past, 0)
    return _flops(config, past, tokens, full_attention=full_attention, absorbed=absorbed)


def _flops(config: ModelConfig, past: int, tokens: int, *, full_attention: bool, absorbed: bool) -> Work:
    layers, full = config.num_hidden_layers, len(indexer_layers(config))
    stop = past + tokens
    available = _sum_to(stop) - _sum_to(past)  # the query at position p has p + 1 keys
    # Queries with at most `index_topk` keys attend to all of them, and nothing is scored for them.
    first = stop if full_attention or not config.selects else min(max(past, config.index_topk), stop)
    choosing, below = stop - first, _sum_to(first) - _sum_to(past)
    attended = below + choosing * config.index_topk
    index_key = config.hidden_size * config.index_head_dim
    index_query = _index_matrices(config) - index_key
    return Work(
        projections=2 * layers * _attention_matrices(config) * tokens,
        indexer=2 * full * (index_key * tokens + index_query * choosing),
        scores=full * score_flops(config, available - below),
        attention=layers * attention_flops(config, attended, absorbed=absorbed),
        feed_forward=round(2 * _feed_forward_parameters(config, config.num_experts_per_tok) * tokens),
        head=2 * config.vocab_size * config.hidden_size,
    )


def step_bytes(
    config: ModelConfig, context: int, *, rows: int = 1, weight_bytes: float = 2, latent_row_bytes: int | None = None,
    index_key_bytes: int | None = None, full_attention: bool = False,
) -> Work:  # fmt: skip
    """Bytes that a step of `rows` new tokens of one sequence has to read at least, weights and cache.

    Args:
        config: sizes and share plan.
        context: keys of the last of them, at least `rows`.
        rows: 1 for a decode step.
        weight_bytes: of one weight.
        latent_row_bytes: of one token's latent in one layer; by default values as wide as a weight.
        index_key_bytes: of one token's index key in one Full layer; likewise.
        full_attention: every latent is read, no index key.

    Raises:
        ValueError: no rows, or more rows than context.
    """
    _check(rows, 1)
    _check(context, rows)
    layers, full = config.num_hidden_layers, len(indexer_layers(config))
    row, key = cache_row_bytes(config, 1)
    latent_row = row * weight_bytes if latent_row_bytes is None else latent_row_bytes
    index_key = key * weight_bytes if index_key_bytes is None else index_key_bytes
    choosing = 0 if full_attention or not config.selects else max(0, min(rows, context - config.index_topk))
    latents = min(context, choosing * config.index_topk) if choosing else context
    # Experts that at least one of the rows is sent to, if all are equally likely; one row uses its own alone.
    unused = (1 - config.num_experts_per_tok / config.n_routed_experts) ** rows
    experts = config.n_routed_experts * (1 - unused)
    index_weights = _index_matrices(config) if choosing else config.hidden_size * config.index_head_dim
    return Work(
        projections=round(layers * _attention_matrices(config) * weight_bytes),
        indexer=round(full * index_weights * weight_bytes),
        scores=round(full * context * index_key) if choosing else 0,
        attention=round(layers * latents * latent_row),
        feed_forward=round(_feed_forward_parameters(config, experts) * weight_bytes),
        head=round(config.vocab_size * config.hidden_size * weight_bytes),
    )


def cache_row_bytes(config: ModelConfig, element_bytes: int, row_bytes: RowBytes | None = None) -> tuple[int, int]:
    """Bytes of one token's rows that attention reads in one layer, and of its index key in one Full layer.

    Args:
        element_bytes, row_bytes: as in `planner.memory.cache_bytes`.
    """
    sizes = {s.name: row_bytes(s) if row_bytes else s.width * element_bytes for s in layer_streams(config, 0)}
    index_key = sizes.pop(INDEX_KEYS, 0)  # layer 0 is Full, in a model that selects
    return sum(sizes.values()), index_key


def _attention_matrices(config: ModelConfig) -> int:
    """Weights of one layer's attention that are multiplied with: without norms and biases."""
    return _multiplied(attention_table(config).tensors(config))


def _index_matrices(config: ModelConfig) -> int:
    """Weights of one indexer that are multiplied with: without the keys' norm."""
    return _multiplied(indexer_tensors(config))


def _multiplied(rows: Iterable[LayerTensor]) -> int:
    return sum(row.size for row in rows if row.role not in (Role.NORM, Role.BIAS))


def _feed_forward_parameters(config: ModelConfig, experts: float) -> float:
    """Weights of all feed-forward layers when `experts` routed experts of each are used."""
    count = count_parameters(config)
    routed = count.experts / config.n_routed_experts * experts
    return count.dense_mlp + count.router + count.shared_experts + routed


def _sum_to(n: int) -> int:
    """1 + 2 + ... + n."""
    return n * (n + 1) // 2


def _check(value: int, least: int) -> None:
    number = plain_integer(value)
    if number is None or number < least:
        raise ValueError(f"{value!r} tokens; expected an integer of at least {least}")
