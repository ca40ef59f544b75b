"""Multi-head latent attention with a sparse selection.

Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1; selection as in DeepSeek-V3.2; sharing as in GLM-5.2.
Shape letters: N packed rows, A heads, C `kv_lora_rank`, P rope width, E no-position width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indexshare import ops
from indexshare.cache.codecs import Pool
from indexshare.cache.view import BatchView, InFlightView, Span
from indexshare.config import ModelConfig
from indexshare.config.mla import LATENTS
from indexshare.model.attention.base import Attention
from indexshare.model.forward_pass import ForwardPass
from indexshare.model.indexer import Indexer
from indexshare.model.norm import RMSNorm
from indexshare.model.observe import AttentionRecord, IndexTensors
from indexshare.model.selection import Selection, dense_rows
from indexshare.ops.coded.rows import Rows

LATENT_NORM_EPS = 1e-6  # transformers builds both inner norms with its default, not with rms_norm_eps
# Keys and values expanded for one dense pass may take at most this; beyond it the absorbed form is used.
EXPANSION_BYTES = 256 << 20


class MLA(Attention):
    """Latent attention of one layer; Full layers own an `indexer`, Shared layers have None."""

    def __init__(self, config: ModelConfig, layer: int, source: int) -> None:
        super().__init__(layer, source)
        bias, hidden = config.attention_bias, config.hidden_size
        self.num_heads, self.rank = config.num_attention_heads, config.kv_lora_rank
        self.nope_dim, self.rope_dim, self.value_dim = (
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
        )
        self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=bias)
        self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_NORM_EPS)
        self.q_b_proj = nn.Linear(config.q_lora_rank, self.num_heads * config.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, config.latent_dim, bias=bias)
        self.kv_a_layernorm = RMSNorm(self.rank, LATENT_NORM_EPS)
        self.kv_b_proj = nn.Linear(self.rank, self.num_heads * (self.nope_dim + self.value_dim), bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.value_dim, hidden, bias=bias)
        self.indexer = Indexer(config, layer, config.q_lora_rank) if self.full else None
        self.scale = config.qk_head_dim**-0.5 * config.rope_parameters.softmax_scale

    def forward(self, x: Tensor, pass_: ForwardPass, selection: Selection | None) -> tuple[Tensor, Selection]:
        q_latent, q = self.queries(x, pass_.rope)
        latents = self.latents(x, pass_.rope)
        pass_.view.write(self.layer, LATENTS, latents)
        tensors: IndexTensors | None = None
        if self.indexer is not None and self.layer not in pass_.reusing:
            selection, tensors = self.indexer(x, q_latent, pass_)
        selection = self.inherited(selection)
        if pass_.observer is not None and pass_.shows_attention:
            queries = self.absorb(q)
            pass_.observer.attention(
                AttentionRecord(self.layer, self.source, pass_.view, selection, queries, latents, self.scale, tensors)
            )
        return self.attend(q, pass_.view, selection), selection

    def store(self, x: Tensor, pass_: ForwardPass) -> None:
        """Latents, and the indexer's keys if it has one."""
        pass_.view.write(self.layer, LATENTS, self.latents(x, pass_.rope))
        if self.indexer is not None:
            self.indexer.store(x, pass_)

    def reuse(self, x: Tensor, pass_: ForwardPass, selection: Selection) -> Tensor:
        """Queries of x over what an earlier pass wrote, `[N, hidden]`."""
        return self.attend(self.queries(x, pass_.rope)[1], pass_.view, selection)

    def queries(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The query latent `[N, q_lora_rank]` after its norm, and rotated queries `[N, A, E + P]`."""
        q_latent = self.q_a_layernorm(self.q_a_proj(x))
        q = self.q_b_proj(q_latent).view(-1, self.num_heads, self.nope_dim + self.rope_dim)
        q_nope, q_rope = q.split((self.nope_dim, self.rope_dim), dim=-1)
        if not q.requires_grad:  # nobody else has seen q
            ops.apply_rope(q_rope, *rope, interleave=True, out=q_rope)
            return q_latent, q
        return q_latent, torch.cat((q_nope, ops.apply_rope(q_rope, *rope, interleave=True)), dim=-1)

    def latents(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Cache rows `[N, C + P]`: normalised latent, then the rotated key shared by all heads."""
        rows = self.kv_a_proj_with_mqa(x)
        latent, key = rows.split((self.rank, self.rope_dim), dim=-1)
        if not torch.is_grad_enabled():
            ops.apply_rope(key[:, None], *rope, interleave=True, out=key[:, None])
            ops.rms_norm(latent, self.kv_a_layernorm.weight, LATENT_NORM_EPS, out=latent)
            return rows
        rotated = ops.apply_rope(key[:, None], *rope, interleave=True)[:, 0]
        return torch.cat((self.kv_a_layernorm(latent), rotated), dim=-1)

    def _up(self) -> tuple[Tensor, Tensor]:
        """Up-projections of keys `[A, E, C]` and values `[A, V, C]`."""
        weight = self.kv_b_proj.weight.view(self.num_heads, self.nope_dim + self.value_dim, self.rank)
        return weight[:, : self.nope_dim], weight[:, self.nope_dim :]

    def absorb(self, q: Tensor) -> Tensor:
        """Queries `[n, A, E + P]` with the key up-projection moved into them: `[n, A, C + P]`."""
        q_nope, q_rope = q.split((self.nope_dim, self.rope_dim), dim=-1)
        if not torch.is_grad_enabled():
            out = q.new_empty(*q.shape[:2], self.rank + self.rope_dim)
            torch.bmm(q_nope.transpose(0, 1), self._up()[0], out=out[..., : self.rank].transpose(0, 1))
            out[..., self.rank :] = q_rope
            return out
        absorbed = torch.bmm(q_nope.transpose(0, 1), self._up()[0]).transpose(0, 1)
        return torch.cat((absorbed, q_rope), dim=-1)

    def values(self, mixed: Tensor) -> Tensor:
        """Per-head values `[n, A, V]` of attended latents `[n, A, C]`."""
        up = self._up()[1].transpose(1, 2)
        if not torch.is_grad_enabled():
            out = mixed.new_empty(*mixed.shape[:2], self.value_dim)
            torch.bmm(mixed.transpose(0, 1), up, out=out.transpose(0, 1))
            return out
        return torch.bmm(mixed.transpose(0, 1), up).transpose(0, 1)

    def attend(self, q: Tensor, view: BatchView, selection: Selection) -> Tensor:
        """Output `[N, hidden]` of queries `[N, A, E + P]`: full attention up to the limit, the selection beyond it."""
        length = self._whole_sequences(view, selection)
        if length:
            return self.o_proj(self._attend_whole(q, view.pool(self.layer, LATENTS).stored, length).flatten(1))
        sparse = None
        if selection.num_rows:
            q_sparse = q if selection.num_rows == q.shape[0] else q[selection.rows]
            sparse = self.values(self._mix(self.absorb(q_sparse), view.pool(self.layer, LATENTS), selection))
        parts, used = [], 0
        for i, span in enumerate(view.spans):
            dense = dense_rows(span, selection.limit)
            if dense:
                latents = view.stored(self.layer, LATENTS, i)
                parts.append(self._attend_dense(q[span.start : span.start + dense], latents, span, dense))
            if dense < span.length:
                assert sparse is not None
                parts.append(sparse[used : used + span.length - dense])
                used += span.length - dense
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.o_proj(out.flatten(1))

    def _mix(self, q: Tensor, pool: Pool, selection: Selection) -> Tensor:
        """Chosen latents weighted by absorbed queries: `[M, A, C]` from `[M, A, C + P]`."""
        groups, slots = selection.groups, selection.slots
        if groups == 1:
            rows, slots = pool.at(slots)
            return ops.sparse_mla(q, rows, slots, self.scale, self.rank)
        rows, slots = pool.at(slots.flatten(0, 1))
        by_group = q.unflatten(1, (groups, -1)).flatten(0, 1)  # a query's heads of one group are a query of their own
        return ops.sparse_mla(by_group, rows, slots, self.scale, self.rank).view(*q.shape[:2], self.rank)

    def _whole_sequences(self, view: BatchView, selection: Selection) -> int:
        """Length of the sequences if this is a training pass over equal whole ones with full attention, else 0."""
        if selection.num_rows or not torch.is_grad_enabled() or not isinstance(view, InFlightView):
            return 0
        length = view.spans[0].length
        return length if all(span.length == length for span in view.spans) else 0

    def _attend_whole(self, q: Tensor, latents: Tensor, length: int) -> Tensor:
        """Expanded causal attention `[N, A, V]` of sequences of one length, all in one batch."""
        up = self.kv_b_proj(latents[:, : self.rank]).view(-1, length, self.num_heads, self.nope_dim + self.value_dim)
        key_nope, value = up.split((self.nope_dim, self.value_dim), dim=-1)
        key_rope = latents[:, None, self.rank :].expand(-1, self.num_heads, -1).view(*key_nope.shape[:3], -1)
        key = torch.cat((key_nope, key_rope), dim=-1)
        return ops.causal_attention(q.view(key.shape), key, value, self.scale).flatten(0, 1)

    def _attend_dense(self, q: Tensor, latents: Rows, span: Span, rows: int) -> Tensor:
        """Causal attention `[rows, A, V]` of a span's leading rows, in whichever form multiplies less."""
        keys = span.past + rows
        latents = latents[:keys]
        heads_width = self.nope_dim + self.value_dim
        expanded = keys * self.rank * heads_width + rows * keys * (heads_width + self.rope_dim)
        absorbed = rows * self.rank * heads_width + rows * keys * (2 * self.rank + self.rope_dim)
        size = keys * self.num_heads * (heads_width + self.rope_dim) * latents.element_size()
        if expanded <= absorbed and size <= EXPANSION_BYTES:
            up = self.kv_b_proj(latents[:, : self.rank]).view(keys, self.num_heads, heads_width)
            key_nope, value = up.split((self.nope_dim, self.value_dim), dim=-1)
            key_rope = latents[:, None, self.rank :].expand(-1, self.num_heads, -1)
            return ops.dense_attention(q, torch.cat((key_nope, key_rope), dim=-1), value, span.past, self.scale)
        key = latents[:, None]
        return self.values(ops.dense_attention(self.absorb(q), key, key, span.past, self.scale)[..., : self.rank])
