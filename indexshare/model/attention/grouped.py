"""Grouped-query attention, over everything or over a sparse selection.

Source: arXiv 2305.13245, section 2; norms of queries and keys as in Qwen3, layers without rotation as in SmolLM3.
Shape letters: N packed rows, A heads, G heads of keys and values, D width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indexshare import ops
from indexshare.cache.view import BatchView, InFlightView, Span
from indexshare.config import ModelConfig
from indexshare.config.grouped import KEYS, VALUES, settings_of
from indexshare.model.attention.base import Attention
from indexshare.model.forward_pass import ForwardPass
from indexshare.model.indexer import Indexer
from indexshare.model.norm import RMSNorm
from indexshare.model.observe import AttentionRecord
from indexshare.model.selection import Selection, dense_rows
from indexshare.ops.coded.rows import Rows

# Queries are attended with in tiles that begin at multiples of this position, so that products have the same sizes, and
# rows the same bits, whether a prompt is read at once or goes on where another one ended.
TILE = 256


class GroupedQuery(Attention):
    """Attention of one layer; in a model that selects, Full layers own an `indexer`, which reads the layer's input."""

    def __init__(self, config: ModelConfig, layer: int, source: int) -> None:
        super().__init__(layer, source)
        own, hidden = settings_of(config), config.hidden_size
        self.num_heads, self.groups, self.width = config.num_attention_heads, own.kv_heads, own.head_dim
        self.rope_dim = 0 if layer in own.no_rope_layers else config.qk_rope_head_dim
        self.q_proj = nn.Linear(hidden, self.num_heads * self.width, bias=own.qkv_bias)
        self.k_proj = nn.Linear(hidden, self.groups * self.width, bias=own.qkv_bias)
        self.v_proj = nn.Linear(hidden, self.groups * self.width, bias=own.qkv_bias)
        self.o_proj = nn.Linear(self.num_heads * self.width, hidden, bias=own.output_bias)
        self.q_norm = RMSNorm(self.width, config.rms_norm_eps) if own.qk_norm else None
        self.k_norm = RMSNorm(self.width, config.rms_norm_eps) if own.qk_norm else None
        self.selects = config.selects
        self.indexer = Indexer(config, layer, hidden) if self.full and self.selects else None
        self.scale = self.width**-0.5

    def forward(self, x: Tensor, pass_: ForwardPass, selection: Selection | None) -> tuple[Tensor, Selection]:
        keys, tensors = self._write(x, pass_), None
        if self.indexer is not None and self.layer not in pass_.reusing:
            selection, tensors = self.indexer(x, x, pass_)
        elif not self.selects:
            selection = everything(x, pass_) if selection is None else selection
        selection, q = self.inherited(selection), self.queries(x, pass_.rope)
        if pass_.observer is not None and pass_.shows_attention:
            record = AttentionRecord(
                self.layer, self.source, pass_.view, selection, self.spread(q), keys, self.scale, tensors
            )
            pass_.observer.attention(record)
        return self.attend(q, pass_.view, selection), selection

    def store(self, x: Tensor, pass_: ForwardPass) -> None:
        """Keys and values, and the indexer's keys if it has one."""
        self._write(x, pass_)
        if self.indexer is not None:
            self.indexer.store(x, pass_)

    def reuse(self, x: Tensor, pass_: ForwardPass, selection: Selection) -> Tensor:
        """Queries of x over what an earlier pass wrote, `[N, hidden]`."""
        return self.attend(self.queries(x, pass_.rope), pass_.view, selection)

    def _write(self, x: Tensor, pass_: ForwardPass) -> Tensor:
        keys = self.keys(x, pass_.rope).flatten(1)
        pass_.view.write(self.layer, KEYS, keys)
        pass_.view.write(self.layer, VALUES, self.v_proj(x))
        return keys

    def spread(self, q: Tensor) -> Tensor:
        """Queries `[N, A, D]` as `[N, A, G * D]`, zeros where the keys of other groups are: one row of keys for all."""
        own = torch.eye(self.groups, dtype=q.dtype, device=q.device)
        return torch.einsum("ngrd,gh->ngrhd", q.unflatten(1, (self.groups, -1)), own).flatten(3).flatten(1, 2)

    def queries(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Turned queries `[N, A, D]`."""
        return self._turned(self.q_proj(x).unflatten(1, (self.num_heads, -1)), self.q_norm, rope)

    def keys(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Turned keys `[N, G, D]`."""
        return self._turned(self.k_proj(x).unflatten(1, (self.groups, -1)), self.k_norm, rope)

    def _turned(self, heads: Tensor, norm: RMSNorm | None, rope: tuple[Tensor, Tensor]) -> Tensor:
        heads = heads if norm is None else norm(heads)
        if not self.rope_dim:
            return heads
        first = heads[..., : self.rope_dim]
        if not heads.requires_grad:  # nobody else has seen them
            ops.apply_rope(first, *rope, interleave=False, out=first)
            return heads
        return torch.cat((ops.apply_rope(first, *rope, interleave=False), heads[..., self.rope_dim :]), dim=-1)

    def attend(self, q: Tensor, view: BatchView, selection: Selection) -> Tensor:
        """Output `[N, hidden]` of queries `[N, A, D]`: full attention up to the limit, the selection beyond it."""
        length = self._whole_sequences(view, selection)
        if length:
            return self.o_proj(self._attend_whole(q, view, length).flatten(1))
        sparse = self._attend_sparse(q, view, selection) if selection.num_rows else None
        parts, used = [], 0
        for i, span in enumerate(view.spans):
            dense = dense_rows(span, selection.limit)
            if dense:
                rows = q[span.start : span.start + dense]
                parts.append(self._attend_dense(rows, view, i, span))
            if dense < span.length:
                assert sparse is not None
                parts.append(sparse[used : used + span.length - dense])
                used += span.length - dense
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.o_proj(out.flatten(1))

    def _attend_sparse(self, q: Tensor, view: BatchView, selection: Selection) -> Tensor:
        """`[M, A, D]` of the queries with a selection, over the chosen rows of the cache."""
        if selection.groups != 1:
            raise ValueError("a selection for each group of heads is not implemented with grouped-query attention")
        rows = q if selection.num_rows == q.shape[0] else q[selection.rows]
        keys, slots = view.pool(self.layer, KEYS).at(selection.slots)
        values, _ = view.pool(self.layer, VALUES).at(selection.slots)
        return ops.sparse_grouped(rows, keys, values, slots, self.scale, self.groups)

    def _attend_dense(self, q: Tensor, view: BatchView, sequence: int, span: Span) -> Tensor:
        """Causal attention `[rows, A, D]` of a sequence's leading rows, tile by tile."""
        stop = span.past + q.shape[0]
        keys, values = (self._by_head(view.stored(self.layer, stream, sequence), stop) for stream in (KEYS, VALUES))
        parts, first = [], span.past
        while first < stop:
            last = min(stop, (first // TILE + 1) * TILE)
            rows = q[first - span.past : last - span.past]
            parts.append(ops.dense_attention(rows, keys[:last], values[:last], first, self.scale))
            first = last
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _by_head(self, rows: Rows, count: int) -> Tensor:
        return rows[:count].unflatten(1, (self.groups, -1))

    def _whole_sequences(self, view: BatchView, selection: Selection) -> int:
        """Length of the sequences if this is a training pass over equal whole ones with full attention, else 0."""
        if selection.num_rows or not torch.is_grad_enabled() or not isinstance(view, InFlightView):
            return 0
        length = view.spans[0].length
        return length if all(span.length == length for span in view.spans) else 0

    def _attend_whole(self, q: Tensor, view: BatchView, length: int) -> Tensor:
        """Causal attention `[N, A, D]` of sequences of one length, all in one batch."""
        each = self.num_heads // self.groups
        keys, values = (
            view.pool(self.layer, stream).stored.view(-1, length, self.groups, self.width).repeat_interleave(each, 2)
            for stream in (KEYS, VALUES)
        )
        return ops.causal_attention(q.view(keys.shape), keys, values, self.scale).flatten(0, 1)


def everything(x: Tensor, pass_: ForwardPass) -> Selection:
    """A selection of nothing, for no query exceeds the limit."""
    none = torch.empty(0, dtype=torch.int64, device=x.device)
    return Selection(pass_.limit, none, none[:, None], none[:, None])
