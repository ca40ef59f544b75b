"""Multi-head latent attention as rows of the table of layers. Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1."""

from __future__ import annotations

from dataclasses import replace

from indexshare.config.layers import AttentionTable, LayerTensor, Role, Stream, register_attention
from indexshare.config.model import ModelConfig
from indexshare.config.variant import LatentAttention

LATENTS = "latents"


class LatentTable(AttentionTable):
    """One latent row of a token serves all heads; queries and outputs pass through low ranks too."""

    def tensors(self, config: ModelConfig) -> tuple[LayerTensor, ...]:
        """Projections down to the latents, their norms, projections up to the heads, output."""
        hidden, heads, query, latent = (
            config.hidden_size,
            config.num_attention_heads,
            config.q_lora_rank,
            config.kv_lora_rank,
        )
        plain, value = config.qk_nope_head_dim, config.v_head_dim
        rows = [
            _matrix("q_a_proj.weight", query, hidden),
            _vector("q_a_layernorm.weight", query, Role.NORM),
            replace(_matrix("q_b_proj.weight", heads * config.qk_head_dim, query), heads=heads),
            _matrix("kv_a_proj_with_mqa.weight", config.latent_dim, hidden),
            _vector("kv_a_layernorm.weight", latent, Role.NORM),
            replace(
                _matrix("kv_b_proj.weight", heads * (plain + value), latent),
                role=Role.LATENT_UP,
                heads=heads,
                split=(plain, value),
            ),
            replace(_matrix("o_proj.weight", hidden, heads * value), residual=True),
        ]
        if config.attention_bias:
            rows += [
                _vector("q_a_proj.bias", query, Role.BIAS),
                _vector("kv_a_proj_with_mqa.bias", config.latent_dim, Role.BIAS),
                _vector("o_proj.bias", hidden, Role.BIAS),
            ]
        return tuple(rows)

    def streams(self, config: ModelConfig) -> tuple[Stream, ...]:
        """One row for all heads: normalised latent, then the rotated key."""
        return (Stream(name=LATENTS, width=config.latent_dim, precise=config.qk_rope_head_dim),)

    def index_inputs(self, config: ModelConfig) -> int:
        """The query latent."""
        return config.q_lora_rank

    def pair_products(self, config: ModelConfig, *, absorbed: bool) -> int:
        """Scores and weighted sum. Sources: DeepSeek-V2, section 2.1 and appendix C."""
        stored, expanded = config.latent_dim + config.kv_lora_rank, config.qk_head_dim + config.v_head_dim
        return config.num_attention_heads * (stored if absorbed else expanded)

    def row_values(self, config: ModelConfig) -> int:
        """Query latent, queries in both forms with a copy, attended latents and values."""
        heads = config.num_attention_heads
        queries = config.q_lora_rank + 2 * heads * (config.qk_head_dim + config.latent_dim)
        return queries + heads * (config.kv_lora_rank + config.v_head_dim)

    def key_values(self, config: ModelConfig) -> int:
        """Expanded keys and values, and both once more as the product wants them."""
        widest = max(config.qk_head_dim, config.v_head_dim)
        return config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim + 2 * widest)

    def kept_values(self, config: ModelConfig) -> int:
        """Latents and queries before and after their norms, queries in both forms, attended latents and values."""
        heads = config.num_attention_heads
        per_head = 2 * config.qk_head_dim + 2 * config.latent_dim + config.kv_lora_rank + config.v_head_dim
        return 2 * config.q_lora_rank + 2 * config.latent_dim + heads * per_head


def _matrix(name: str, out: int, into: int) -> LayerTensor:
    return LayerTensor(name=f"self_attn.{name}", shape=(out, into), part="attention")


def _vector(name: str, width: int, role: Role) -> LayerTensor:
    return LayerTensor(name=f"self_attn.{name}", shape=(width,), part="attention", role=role)


register_attention(LatentAttention, LatentTable())
