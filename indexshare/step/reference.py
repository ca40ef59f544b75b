"""The decode step as its formulas read: float32, whole matrices, one row at a time where rows differ.

Compare the C++ step with this. It takes what `Decoder.step` takes, and is made of the operations' references alone: no
module of the model, no kernel, no rounding between operations. The model's own forward pass is a second twin.

Sources: the operations' references. Shape letters: N rows, H hidden, A heads, C latent, P rope width, E no-position
width, V value width, D index width, k selected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.config import ModelConfig
from indexshare.config.layers import model_tensors
from indexshare.model.attention.mla import LATENT_NORM_EPS
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.indexer import KEY_NORM_EPS
from indexshare.ops.coded.reference import encode_rows
from indexshare.ops.coded.rows import CodedRows, Rows
from indexshare.ops.experts import reference as experts_room
from indexshare.ops.indexer.reference import select_topk
from indexshare.ops.rows.reference import apply_rope, layer_norm, rms_norm, rope_tables, swiglu
from indexshare.ops.sparse_mla.reference import sparse_mla

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Layer:
    """Weights of one layer by the rest of their names."""

    weights: Weights
    prefix: str

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[self.prefix + name]

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.weights

    def linear(self, name: str, x: Tensor) -> Tensor:
        """`W x`, with a bias where there is one."""
        out = x @ self[f"{name}.weight"].t()
        return out + self[f"{name}.bias"] if f"{name}.bias" in self else out


def plain_weights(model: GlmMoeDsa) -> dict[str, Tensor]:
    """All weights of the trunk and its head by name, float32, packed ones dequantised."""
    weights = {}
    for row in model_tensors(model.config):
        if not row.name.startswith("mtp."):
            owner, _, attribute = row.name.rpartition(".")
            weights[row.name] = getattr(model.get_submodule(owner), attribute).detach().float()
    weights.setdefault("lm_head.weight", weights["embed_tokens.weight"])
    return weights


def step(
    config: ModelConfig, weights: Weights, ids: Sequence[int], positions: Tensor, slots: Tensor,
    tables: Sequence[Tensor], *, latents: Sequence[Rows], index_keys: Sequence[Rows | None], block_size: int,
    limit: int, wanted: Sequence[int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the rows and write their latents and index keys. See `Decoder.step` for what is not said here.

    Args:
        weights: from `plain_weights`.
        latents: of each layer, the pool `[S, C + P]`; index_keys: the pool `[S, D]`, None in Shared layers. Both may be
            in a form of few bits, in which new rows are stored.

    Returns:
        Hidden states after the final norm `[N, H]` and logits `[len(wanted), V]`, float32.
    """
    if not len(ids):
        return torch.empty(0, config.hidden_size), torch.empty(0, config.vocab_size)
    x = weights["embed_tokens.weight"][torch.tensor(ids, dtype=torch.int64)]
    rope_settings = config.rope_parameters
    rope = rope_tables(rope_settings.inverse_frequencies(config.qk_rope_head_dim), positions, rope_settings.table_scale)
    past = [_past(table, int(at), block_size) for table, at in zip(tables, positions, strict=True)]
    chosen = list(past)  # rows of the pools that each row attends to: everything, or what a Full layer chose
    for layer in range(config.num_hidden_layers):
        w = _Layer(weights, f"layers.{layer}.")
        normed = rms_norm(x, w["input_layernorm.weight"], config.rms_norm_eps)
        query = rms_norm(w.linear("self_attn.q_a_proj", normed), w["self_attn.q_a_layernorm.weight"], LATENT_NORM_EPS)
        _write(latents[layer], slots, _latents(config, w, normed, rope))
        keys = index_keys[layer]
        if keys is not None:
            _write(keys, slots, _index_keys(config, w, normed, rope))
            chosen = _choose(config, w, normed, query, rope, keys, past, limit)
        x = x + w.linear("self_attn.o_proj", _attend(config, w, query, rope, latents[layer], chosen))
        x = x + _feed_forward(config, w, rms_norm(x, w["post_attention_layernorm.weight"], config.rms_norm_eps))
    hidden = rms_norm(x, weights["norm.weight"], config.rms_norm_eps)
    return hidden, hidden[list(wanted)] @ weights["lm_head.weight"].t()


def _write(pool: Rows, slots: Tensor, rows: Tensor) -> None:
    if isinstance(pool, CodedRows):
        pool.stored[slots] = encode_rows(rows, pool.layout)
    else:
        pool[slots] = rows.to(pool.dtype)


def _past(table: Tensor, position: int, block_size: int) -> Tensor:
    """Rows of the pools that hold positions 0 to `position` of a sequence."""
    at = torch.arange(position + 1)
    return table[at // block_size] * block_size + at % block_size


def _latents(config: ModelConfig, w: _Layer, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Latent and rotary key `[N, C + P]`."""
    latent, key = w.linear("self_attn.kv_a_proj_with_mqa", x).split(
        (config.kv_lora_rank, config.qk_rope_head_dim), dim=-1
    )
    latent = rms_norm(latent, w["self_attn.kv_a_layernorm.weight"], LATENT_NORM_EPS)
    return torch.cat((latent, apply_rope(key[:, None], *rope, interleave=True)[:, 0]), dim=-1)


def _index_keys(config: ModelConfig, w: _Layer, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """`[N, D]`, the first P values rotated."""
    key = layer_norm(
        w.linear("self_attn.indexer.wk", x), w["self_attn.indexer.k_norm.weight"],
        w["self_attn.indexer.k_norm.bias"], KEY_NORM_EPS,
    )  # fmt: skip
    return _rotate_first(config, key[:, None], rope)[:, 0]


def _rotate_first(config: ModelConfig, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    first, rest = x[..., : config.qk_rope_head_dim], x[..., config.qk_rope_head_dim :]
    return torch.cat((apply_rope(first, *rope, interleave=config.indexer_rope_interleave), rest), dim=-1)


def _choose(
    config: ModelConfig, w: _Layer, x: Tensor, query: Tensor, rope: tuple[Tensor, Tensor], keys: Rows,
    past: Sequence[Tensor], limit: int,
) -> list[Tensor]:  # fmt: skip
    """For each row the rows of the pool that it attends to: all of them up to the limit, then the best k."""
    heads, width = config.index_n_heads, config.index_head_dim
    queries = w.linear("self_attn.indexer.wq_b", query).view(-1, heads, width)
    queries = _rotate_first(config, queries, rope)
    head_weights = w.linear("self_attn.indexer.weights_proj", x) * heads**-0.5 * width**-0.5
    chosen = []
    for row, own in enumerate(past):
        if len(own) > limit:
            last = torch.tensor([len(own) - 1])
            best = select_topk(queries[[row]], head_weights[[row]], keys[own], last, config.index_topk)
            own = own[best[0]]
        chosen.append(own)
    return chosen


def _attend(
    config: ModelConfig, w: _Layer, query: Tensor, rope: tuple[Tensor, Tensor], pool: Rows, chosen: Sequence[Tensor]
) -> Tensor:
    """Absorbed attention of all heads over the chosen rows, `[N, A * V]`."""
    heads, nope = config.num_attention_heads, config.qk_nope_head_dim
    plain, rotary = w.linear("self_attn.q_b_proj", query).view(len(query), heads, -1).tensor_split([nope], -1)
    up = w["self_attn.kv_b_proj.weight"].view(heads, nope + config.v_head_dim, config.kv_lora_rank)
    absorbed = torch.einsum("nae,aec->nac", plain, up[:, :nope])
    queries = torch.cat((absorbed, apply_rope(rotary, *rope, interleave=True)), dim=-1)
    scale = (nope + config.qk_rope_head_dim) ** -0.5 * config.rope_parameters.softmax_scale
    rows = zip(queries, chosen, strict=True)
    mixed = [sparse_mla(q[None], pool, own[None], scale, config.kv_lora_rank) for q, own in rows]
    return torch.einsum("nac,avc->nav", torch.cat(mixed), up[:, nope:]).flatten(1)


def _feed_forward(config: ModelConfig, w: _Layer, x: Tensor) -> Tensor:
    """Dense, or the experts' weighted sum and the shared experts."""
    if "mlp.gate.weight" not in w:
        return _swiglu(w, "mlp", x)
    scores = w.linear("mlp.gate", x).sigmoid()
    ids, expert_weights = experts_room.route(
        scores, w["mlp.gate.e_score_correction_bias"], topk=config.num_experts_per_tok, groups=config.n_group,
        topk_groups=config.topk_group, normalise=config.norm_topk_prob, scale=config.routed_scaling_factor,
    )  # fmt: skip
    out = experts_room.experts(x, ids, expert_weights, w["mlp.experts.gate_up_proj"], w["mlp.experts.down_proj"])
    return out + _swiglu(w, "mlp.shared_experts", x) if config.n_shared_experts else out


def _swiglu(w: _Layer, name: str, x: Tensor) -> Tensor:
    gate, up = w.linear(f"{name}.gate_proj", x), w.linear(f"{name}.up_proj", x)
    return w.linear(f"{name}.down_proj", swiglu(gate, up))
