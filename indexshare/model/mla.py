"""Multi-head latent attention with a sparse selection.

Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1; selection as in DeepSeek-V3.2; sharing as in GLM-5.2.
Shape letters: N packed rows, A heads, C `kv_lora_rank`, P rope width, E no-position width, V value width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indexshare import ops
from indexshare.cache.view import BatchView, InFlightView, Span
from indexshare.config import ModelConfig
from indexshare.config.mla import LATENTS
from indexshare.model.indexer import Indexer
from indexshare.model.norm import RMSNorm
from indexshare.model.observe import AttentionRecord, IndexTensors, Observer
from indexshare.model.selection import Selection, dense_rows

LATENT_NORM_EPS = 1e-6  # transformers builds both inner norms with its default, not with rms_norm_eps
# Keys and values expanded for one dense pass may take at most this; beyond it the absorbed form is used.
EXPANSION_BYTES = 256 << 20


class MLA(nn.Module):
    """Latent attention of one layer; Full layers own an `indexer`, Shared layers have None."""

    def __init__(self, config: ModelConfig, *, full: bool) -> None:
        super().__init__()
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
        self.indexer = Indexer(config) if full else None
        self.scale = config.qk_head_dim**-0.5 * config.rope_parameters.softmax_scale

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], view: BatchView, layer: int, selection: Selection | None,
        *, limit: int, source: int, observer: Observer | None = None,
    ) -> tuple[Tensor, Selection]:  # fmt: skip
        """Attend and return the output `[N, hidden]` with the selection that was used.

        Args:
            x: `[N, hidden]` normalised hidden states; rope: tables for their positions.
            view: this batch and its cache; latents (and index keys) of the batch are written to it first.
            selection: what the last Full layer chose; ignored by Full layers, required by Shared ones.
            limit: queries with at most this much context attend to everything.
            source: index of the Full layer whose selection is used (told to the observer).
        """
        q_latent, q = self.queries(x, rope)
        latents = self.latents(x, rope)
        view.write(layer, LATENTS, latents)
        observed = observer is not None and observer.wants_attention
        tensors: IndexTensors | None = None
        if self.indexer is not None:
            selection, tensors = self.indexer(x, q_latent, rope, view, layer, limit, want_tensors=observed)
        if selection is None:
            raise ValueError(f"layer {layer} is Shared but no earlier layer passed a selection")
        if observed:
            assert observer is not None
            record = AttentionRecord(layer, source, view, selection, self.absorb(q), latents, self.scale, tensors)
            observer.attention(record)
        return self.attend(q, view, layer, selection), selection

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

    def attend(self, q: Tensor, view: BatchView, layer: int, selection: Selection) -> Tensor:
        """Output `[N, hidden]` of queries `[N, A, E + P]`: full attention up to the limit, the selection beyond it."""
        length = self._whole_sequences(view, selection)
        if length:
            return self.o_proj(self._attend_whole(q, view.pool(layer, LATENTS).stored, length).flatten(1))
        sparse = None
        if selection.num_rows:
            q_sparse = q if selection.num_rows == q.shape[0] else q[selection.rows]
            rows, slots = view.pool(layer, LATENTS).at(selection.slots)
            mixed = ops.sparse_mla(self.absorb(q_sparse), rows, slots, self.scale, self.rank)
            sparse = self.values(mixed)
        parts, used = [], 0
        for i, span in enumerate(view.spans):
            dense = dense_rows(span, selection.limit)
            if dense:
                latents = view.read(layer, LATENTS, i)
                parts.append(self._attend_dense(q[span.start : span.start + dense], latents, span, dense))
            if dense < span.length:
                assert sparse is not None
                parts.append(sparse[used : used + span.length - dense])
                used += span.length - dense
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.o_proj(out.flatten(1))

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

    def _attend_dense(self, q: Tensor, latents: Tensor, span: Span, rows: int) -> Tensor:
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
