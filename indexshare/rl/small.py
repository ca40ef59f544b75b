"""A policy small enough to learn a task from nothing in minutes."""

from __future__ import annotations

from typing import Any

from indexshare.config.model import ModelConfig
from indexshare.config.presets import preset


def small_model(vocab_size: int, **changes: Any) -> ModelConfig:
    """Four layers of width 128, of which layers 0 and 1 run the indexer; 0.8 million parameters with 266 ids."""
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "intermediate_size": 256,
        "moe_intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "n_routed_experts": 4,
        "q_lora_rank": 64,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "index_topk": 64,
        "num_nextn_predict_layers": 0,
        "max_position_embeddings": 256,
        "initializer_range": 0.05,
        "indexer_types": ("full", "full", "shared", "shared"),
        "mlp_layer_types": ("dense", "sparse", "sparse", "sparse"),
        "dtype": "float32",
    }
    return preset("pico").replace(**(sizes | changes))
