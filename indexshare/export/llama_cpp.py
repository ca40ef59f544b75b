"""What llama.cpp must know of a model to run it: its name for the architecture, and hyperparameters under its keys.

Checked against the source vendored by llama-cpp-python 0.3.36: `src/models/glm-dsa.cpp`, `src/models/deepseek32.cpp`,
`src/llama-model.cpp`, `src/llama-kv-cache.cpp`. What it cannot represent is refused here, before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass

from indexshare.config.model import ModelConfig
from indexshare.model.indexer import KEY_NORM_EPS

Value = int | float | bool | str | list[bool] | list[int] | list[str]

ARCHITECTURES = {"glm_moe_dsa": "glm-dsa", "deepseek_v32": "deepseek32"}
SIGMOID = 2  # llama.cpp's number for the router's scoring function
MAX_LAYERS, MAX_EXPERTS = 512, 1024  # sizes of llama.cpp's arrays

# llama.cpp turns index queries and keys by a Hadamard matrix whose side is the largest power of two, from 64 up,
# that divides the head's width, and multiplies without blocks: the side must be the width.
_SMALLEST_INDEX_HEAD = 64


@dataclass(frozen=True, kw_only=True)
class IndexHead:
    """How one index head is laid out for llama.cpp.

    Attributes:
        order: for each of the `index_head_dim` values of a head, which of ours it is.
        width: values per head in the file; a multiple of `len(order)`. The values beyond are such that no score
            changes: zero in queries; in keys, the head repeated before the LayerNorm, so that mean and variance
            stay what they are, then multiplied by zero.
    """

    order: tuple[int, ...]
    width: int

    @property
    def as_stored(self) -> bool:
        """Whether nothing has to be moved or added."""
        return self.order == tuple(range(self.width))


def index_head(config: ModelConfig) -> IndexHead:
    """Order and width of an index head: rotary pairs where llama.cpp has them, and wide enough for its Hadamard matrix.

    The main attention needs no such change: both architectures rotate neighbouring pairs there (ggml's "norm" rope),
    as the public checkpoints do. For the indexer, `glm-dsa` rotates neighbouring pairs and `deepseek32` values half
    the rotary width apart ("neox"), whatever a checkpoint's `indexer_rope_interleave` says; scores are sums over the
    head, so a checkpoint of the other kind only needs its rows moved.
    """
    rope, width = config.qk_rope_head_dim, config.index_head_dim
    wants_pairs = config.model_type == "glm_moe_dsa"
    rotary = list(range(rope))
    if wants_pairs and not config.indexer_rope_interleave:
        rotary = [i // 2 + (i % 2) * (rope // 2) for i in range(rope)]
    if not wants_pairs and config.indexer_rope_interleave:
        rotary = [2 * i for i in range(rope // 2)] + [2 * i + 1 for i in range(rope // 2)]
    return IndexHead(order=(*rotary, *range(rope, width)), width=max(width, _SMALLEST_INDEX_HEAD))


def architecture(config: ModelConfig) -> str:
    """llama.cpp's name of the architecture.

    Raises:
        ValueError: llama.cpp cannot run such a model; every reason is named.
    """
    reasons = [*_shape_problems(config), *_rule_problems(config)]
    if reasons:
        raise ValueError(f"llama.cpp cannot run this model: {'; '.join(reasons)}")
    return ARCHITECTURES[config.model_type]


def _shape_problems(config: ModelConfig) -> list[str]:
    reasons = []
    width = config.index_head_dim
    if width & (width - 1):
        reasons.append(f"index_head_dim is {width}, its indexer needs a power of two")
    if config.num_layers_with_draft > MAX_LAYERS:
        reasons.append(f"it has {config.num_layers_with_draft} layers, the limit is {MAX_LAYERS}")
    if not 1 < config.n_routed_experts <= MAX_EXPERTS:
        reasons.append(f"n_routed_experts is {config.n_routed_experts}, it takes 2 to {MAX_EXPERTS}")
    if config.n_shared_experts < 1:
        reasons.append("n_shared_experts is 0, it expects a shared expert beside the routed ones")
    first = (*config.mlp_layer_types, "sparse").index("sparse")
    if "dense" in config.mlp_layer_types[first:]:
        reasons.append(f"mlp_layer_types has a dense layer after layer {first}, the first with experts")
    return reasons


def _rule_problems(config: ModelConfig) -> list[str]:
    reasons = config.variant.differences()
    rope = config.rope_parameters
    if config.attention_bias:
        reasons.append("attention_bias is true, its attention has no biases")
    if config.model_type == "deepseek_v32" and config.share_plan.shared_layers:
        reasons.append(f"layer {config.share_plan.shared_layers[0]} shares an index, which its deepseek32 cannot")
    if rope.rope_type == "yarn" and config.model_type == "glm_moe_dsa":
        reasons.append("rope_type is 'yarn', whose temperature its glm-dsa does not read")
    elif rope.rope_type == "yarn" and (rope.mscale, rope.mscale_all_dim) != (1.0, 1.0):
        reasons.append(f"yarn's mscale is {rope.mscale} and mscale_all_dim {rope.mscale_all_dim}, it assumes 1 and 1")
    if rope.rope_type == "yarn" and rope.attention_factor is not None:
        reasons.append(f"yarn's attention_factor is {rope.attention_factor}, which it does not read")
    return reasons


def hyperparameters(config: ModelConfig) -> dict[str, Value]:
    """Every hyperparameter by llama.cpp's key, in the order they are written."""
    prefix = architecture(config)
    facts: dict[str, Value] = {
        "block_count": config.num_layers_with_draft,  # the draft layer is the last block
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "vocab_size": config.vocab_size,
        **_attention(config),
        **_experts(config),
        **_rope(config),
    }
    if config.num_nextn_predict_layers:
        facts["nextn_predict_layers"] = config.num_nextn_predict_layers
    return {f"{prefix}.{key}": value for key, value in facts.items()}


def _attention(config: ModelConfig) -> dict[str, Value]:
    facts: dict[str, Value] = {
        "attention.head_count": config.num_attention_heads,
        # Absorbed attention is multi-query: one key, the latent with its rotary part, whose latent is also the value.
        "attention.head_count_kv": 1,
        "attention.key_length": config.latent_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "attention.layer_norm_epsilon": KEY_NORM_EPS,
        "attention.indexer.head_count": config.index_n_heads,
        "attention.indexer.key_length": index_head(config).width,
        "attention.indexer.top_k": config.index_topk,
    }
    if config.model_type == "glm_moe_dsa":
        # Without this key llama.cpp takes every layer for Full, or from a context of 1,048,576 the plan of GLM-5.2.
        plan = config.share_plan
        facts["attention.indexer.types"] = [plan.is_full(layer) for layer in range(config.num_hidden_layers)]
    return facts


def _experts(config: ModelConfig) -> dict[str, Value]:
    # Choosing among all groups is choosing without groups, and llama.cpp insists on leaving at least one out.
    limited = config.topk_group < config.n_group
    return {
        "leading_dense_block_count": (*config.mlp_layer_types, "sparse").index("sparse"),
        "expert_count": config.n_routed_experts,
        "expert_used_count": config.num_experts_per_tok,
        "expert_shared_count": config.n_shared_experts,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_group_count": config.n_group if limited else 1,
        "expert_group_used_count": config.topk_group if limited else 1,
        "expert_gating_func": SIGMOID,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "expert_weights_norm": config.norm_topk_prob,
    }


def _rope(config: ModelConfig) -> dict[str, Value]:
    rope = config.rope_parameters
    facts: dict[str, Value] = {
        "rope.dimension_count": config.qk_rope_head_dim,
        "rope.freq_base": float(rope.rope_theta),
    }
    if rope.rope_type == "yarn":
        facts |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope.factor),
            "rope.scaling.original_context_length": rope.original_max_position_embeddings,
            "rope.scaling.yarn_beta_fast": float(rope.beta_fast),
            "rope.scaling.yarn_beta_slow": float(rope.beta_slow),
            # Its loader divides by ten again.
            "rope.scaling.yarn_log_multiplier": 0.1 * rope.mscale_all_dim,
        }
    return facts
