"""Parameters and cache bytes of a configuration, counted from the table of layers; nothing is allocated.

These sums exist only here: the engine sizes its cache with them, and tests compare them with what is
really allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

from indexshare.config import ModelConfig
from indexshare.config.layers import (
    LayerTensor,
    Role,
    Stream,
    attention_table,
    draft_tensors,
    layer_streams,
    layer_tensors,
    outer_tensors,
)


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by part. Router correction biases are not parameters and are not counted: they are buffers."""

    embedding: int
    head: int
    attention: int
    indexer: int
    dense_mlp: int
    experts: int
    shared_experts: int
    router: int
    norms: int
    draft: int
    active: int

    @property
    def trunk(self) -> int:
        """Everything except the draft layer."""
        return self.total - self.draft

    @property
    def total(self) -> int:
        """All parameters of the checkpoint, draft layer included."""
        parts = (self.embedding, self.head, self.attention, self.indexer, self.dense_mlp, self.experts)
        return sum(parts) + self.shared_experts + self.router + self.norms + self.draft


def _size(rows: Iterable[LayerTensor]) -> int:
    return sum(row.size for row in rows if row.role is not Role.ROUTER_BIAS)


def count_parameters(cfg: ModelConfig) -> ParameterCount:
    """Count the parameters of a configuration.

    `active` is what one token's trunk pass multiplies with: everything except the experts it is not routed to
    and the input embedding (a look-up), without the draft layer.
    """
    before, after = outer_tensors(cfg)
    trunk = [*before, *after, *(row for n in range(cfg.num_hidden_layers) for row in layer_tensors(cfg, n))]
    draft = 0
    if cfg.num_nextn_predict_layers:
        draft = _size(draft_tensors(cfg)) + _size(layer_tensors(cfg, cfg.num_hidden_layers))
    parts = {item.name: 0 for item in fields(ParameterCount)} | {"draft": draft}
    for row in trunk:
        parts[row.part] += _size([row])
    chosen = parts["experts"] // cfg.n_routed_experts * cfg.num_experts_per_tok
    head = parts["head"] or parts["embedding"]
    parts["active"] = _size(trunk) - parts["embedding"] - parts["head"] - parts["experts"] + head + chosen
    return ParameterCount(**parts)


@dataclass(frozen=True)
class CacheBytes:
    """Cache bytes that one token costs, over all layers: `streams` by the streams' names."""

    streams: dict[str, int]

    @property
    def total(self) -> int:
        """All streams together."""
        return sum(self.streams.values())


RowBytes = Callable[[Stream], int]


def cache_bytes(
    cfg: ModelConfig, element_bytes: int = 2, *, draft: bool = False, row_bytes: RowBytes | None = None
) -> CacheBytes:
    """Cache bytes per token: every stream of every layer.

    Args:
        cfg: sizes and share plan.
        element_bytes: of one value, where rows are kept as they are.
        draft: count the draft layer's streams too.
        row_bytes: of a row of a stream, where a codec keeps it in another form (`cache.codecs`).
    """
    streams: dict[str, int] = {}
    for layer in range(cfg.num_hidden_layers + draft):
        for stream in layer_streams(cfg, layer):
            size = stream.width * element_bytes if row_bytes is None else row_bytes(stream)
            streams[stream.name] = streams.get(stream.name, 0) + size
    return CacheBytes(streams)


def cache_bytes_per_token(
    cfg: ModelConfig, element_bytes: int = 2, *, draft: bool = False, row_bytes: RowBytes | None = None
) -> int:
    """Total of `cache_bytes`."""
    return cache_bytes(cfg, element_bytes, draft=draft, row_bytes=row_bytes).total


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes that a prompt takes on top of a running program.

    Attributes:
        weights: of the whole checkpoint, draft layer included.
        cache: of the prompt's tokens.
        workspace: what one step computes with, and the prompt itself.
        compiled: matrix products that the CPU library compiles for the sizes it meets, in bfloat16.
    """

    weights: int
    cache: int
    workspace: int
    compiled: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.workspace + self.compiled


def plan_memory(
    cfg: ModelConfig, tokens: int, *, element_bytes: int = 2, chunk: int = 512, row_bytes: RowBytes | None = None
) -> MemoryPlan:
    """Peak memory of one sequence of `tokens` tokens, read in steps of `chunk`; cache rows as in `cache_bytes`."""
    row_counts = {min(chunk, tokens), tokens % chunk or chunk, 1}  # of the steps: chunks, the last one, decoding
    return MemoryPlan(
        weights=count_parameters(cfg).total * element_bytes,
        cache=tokens * cache_bytes_per_token(cfg, element_bytes, row_bytes=row_bytes),
        workspace=step_workspace_bytes(cfg, min(chunk, tokens), element_bytes) + tokens * _PROMPT_BYTES,
        compiled=len(row_counts) * _COMPILED_BYTES if element_bytes == 2 else 0,
    )


# Measured (docs/LOG.md): a step with a number of rows not met before leaves 20 to 50 MB of compiled code behind.
_COMPILED_BYTES = 24 << 20
_PROMPT_BYTES = 48  # a token id as a Python integer (32), in the prompt's list and in the request's


def step_workspace_bytes(cfg: ModelConfig, rows: int, element_bytes: int = 2) -> int:
    """Temporaries of a step of `rows` tokens, as if none were freed before the layer ends.

    That is what an allocator keeps: hidden states, queries in both forms and what they attended, index queries, the
    selection as positions and slots with a copy of each, experts' rows, one row of logits, and the keys and values
    expanded for the first rows, which see at most `index_topk` tokens.
    """
    table = attention_table(cfg)
    index = 2 * cfg.index_n_heads * cfg.index_head_dim if cfg.selects else 0
    routed = cfg.num_experts_per_tok * (2 * cfg.hidden_size + 3 * cfg.moe_intermediate_size) if cfg.has_experts else 0
    feed_forward = max(3 * cfg.intermediate_size, routed)
    values = (6 * cfg.hidden_size + table.row_values(cfg) + index + feed_forward) * element_bytes
    selection = 4 * cfg.index_topk * 8 if cfg.selects else 0
    expanded = cfg.index_topk * table.key_values(cfg) * element_bytes
    return rows * (values + selection) + expanded + 3 * cfg.vocab_size * 4
