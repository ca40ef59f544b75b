"""Named configurations: the published models, and small ones to train and test on."""

from __future__ import annotations

import difflib

from indexshare.config.model import ModelConfig
from indexshare.config.rope import RopeParameters
from indexshare.config.share_plan import SharePlan


def _glm_5() -> dict[str, object]:
    """GLM-5 and 5.1: every layer Full, context 202,752, rotary base 1e6."""
    return {
        "num_nextn_predict_layers": 1,
        "max_position_embeddings": 202752,
        "rope_parameters": RopeParameters(rope_theta=1e6),
        "eos_token_id": (154820, 154827, 154829),
        "pad_token_id": 154820,
    }


def _small(**changes: object) -> ModelConfig:
    """The architecture of GLM-5.2 at laptop size, with its own sharing rule (frequency 4, offset 3)."""
    sizes: dict[str, object] = {
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 512,
        "moe_intermediate_size": 64,
        "num_hidden_layers": 13,
        "num_attention_heads": 4,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "q_lora_rank": 128,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "index_n_heads": 8,
        "index_head_dim": 64,
        "index_topk": 256,
        "num_nextn_predict_layers": 1,
        "max_position_embeddings": 32768,
        "rope_parameters": RopeParameters(rope_theta=8e6),
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    sizes.update(changes)
    layers = int(sizes["num_hidden_layers"])  # type: ignore[call-overload]
    sizes.setdefault("indexer_types", SharePlan.uniform(layers, every=4, offset=3).types)
    sizes.setdefault("mlp_layer_types", ("dense",) + ("sparse",) * (layers - 1))
    return ModelConfig(**sizes)  # type: ignore[arg-type]


def _glm_52() -> ModelConfig:
    sizes = _glm_5() | {
        "max_position_embeddings": 1048576,
        "rope_parameters": RopeParameters(rope_theta=8e6),
        "indexer_types": SharePlan.uniform(78, every=4, offset=3).types,
    }
    return ModelConfig(**sizes)  # type: ignore[arg-type]


def _deepseek_v32() -> ModelConfig:
    return ModelConfig.from_dict(
        {
            "model_type": "deepseek_v32",
            "num_nextn_predict_layers": 1,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "yarn",
                "factor": 40.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 4096,
            },
        }
    )


def _pico() -> ModelConfig:
    """About a million parameters: six layers, Full at 0, 1 and 2, and a draft layer."""
    return _small(
        vocab_size=1024,
        hidden_size=96,
        intermediate_size=256,
        moe_intermediate_size=32,
        num_hidden_layers=6,
        q_lora_rank=64,
        kv_lora_rank=64,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=32,
        index_n_heads=8,
        index_head_dim=32,
        index_topk=128,
        max_position_embeddings=8192,
        rope_parameters=RopeParameters(rope_theta=1e4),
    )


def _tiny() -> ModelConfig:
    return _small(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=6,
        num_attention_heads=2,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=12,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=8,
        max_position_embeddings=4096,
        initializer_range=0.2,
    )


PRESETS = {
    "glm-5.2": _glm_52,
    "glm-5.1": lambda: ModelConfig(**_glm_5()),  # type: ignore[arg-type]
    "deepseek-v3.2": _deepseek_v32,
    "nano": _small,
    "pico": _pico,
    "tiny": _tiny,
}


def preset(name: str) -> ModelConfig:
    """The configuration called `name`.

    Raises:
        ValueError: no such preset; the nearest name and all names are given.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown preset {name!r}{hint} Presets are {sorted(PRESETS)}")
    return PRESETS[name]()
