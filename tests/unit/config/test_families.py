"""Dense public models: what their files say, what is written back, what is refused, rows of the tables."""

from typing import Any

import pytest
import torch

from indexshare.config import ModelConfig
from indexshare.config.grouped import settings_of
from indexshare.config.layers import indexer_layers, layer_streams, model_tensors
from indexshare.config.rope import RopeParameters
from indexshare.config.variant import Everything, GroupedAttention, Variant
from indexshare.model.glm import GlmMoeDsa
from indexshare.planner.flops import token_flops
from indexshare.planner.memory import cache_bytes, count_parameters, plan_memory

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "rope_theta": 1e4,
}  # fmt: skip
LLAMA31 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
# As published with SmolLM2-135M.
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
    "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}, "use_cache": True,
    "vocab_size": 49152,
}  # fmt: skip


def read(model_type: str = "llama", **changes: Any) -> ModelConfig:
    data = SIZES | {"model_type": model_type} | ({"sliding_window": None} if model_type == "mistral" else {})
    return ModelConfig.from_dict(data | changes)


def test_a_published_file() -> None:
    config = ModelConfig.from_dict(SMOLLM2)
    assert settings_of(config) == GroupedAttention(kv_heads=3, head_dim=64)
    assert count_parameters(config).total == 134_515_008
    assert cache_bytes(config, 2).streams == {"keys": 30 * 384, "values": 30 * 384}
    assert not config.selects and config.index_topk == 8192 and indexer_layers(config) == ()
    assert ModelConfig.from_dict(config.to_dict()) == config
    written = config.to_dict()
    assert written["architectures"] == ["LlamaForCausalLM"] and "indexshare" not in written
    assert not [key for key in written if "index" in key or "lora" in key or "expert" in key]
    work = token_flops(config, 4096)
    assert work.scores == work.indexer == 0 and work.attention == 2 * 30 * 2 * 9 * 64 * 4096
    assert plan_memory(config, 4096).total > 0


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_what_is_written_is_read(model_type: str) -> None:
    biased = {} if model_type in ("mistral", "qwen2") else {"attention_bias": True}
    config = read(model_type, head_dim=6, rope_scaling=LLAMA31, eos_token_id=[3, 4], **biased)
    assert ModelConfig.from_dict(config.to_dict()) == config
    own = settings_of(config)
    assert own.qk_norm == (model_type == "qwen3")
    assert (own.qkv_bias, own.output_bias) == (model_type != "mistral", model_type not in ("mistral", "qwen2"))
    assert config.rope_parameters.original_max_position_embeddings == 256
    with torch.device("meta"):
        state = GlmMoeDsa(config).state_dict()
    rows = {row.name: row.shape for row in model_tensors(config)}
    assert rows == {n: tuple(t.shape) for n, t in state.items() if n != "lm_head.weight" or n in rows}
    assert [stream.name for stream in layer_streams(config, 0)] == ["keys", "values"]


def test_layers_without_rotation() -> None:
    assert settings_of(read("smollm3", no_rope_layer_interval=2)).no_rope_layers == (1,)
    listed = read("smollm3", no_rope_layers=[0, 1, 0], no_rope_layer_interval=2)
    assert settings_of(listed).no_rope_layers == (0, 2)
    assert ModelConfig.from_dict(listed.to_dict()) == listed


@pytest.mark.parametrize(
    ("model_type", "window", "others"),
    [
        ("mistral", {"sliding_window": 256}, {}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, {}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}, {}),
        ("smollm3", {"sliding_window": 8, "use_sliding_window": True}, {"no_rope_layers": [1, 1, 1]}),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
            {"layer_types": ["full_attention"] * 3},
        ),
    ],
)
def test_windows_that_leave_nothing_out(model_type: str, window: dict[str, Any], others: dict[str, Any]) -> None:
    assert settings_of(read(model_type, **window, **others)) == settings_of(read(model_type, **others))


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("mistral", {"sliding_window": 64}, "sliding_window is 64, shorter than the context of 256"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_window is 8"),
        ("smollm3", {"use_sliding_window": True, "sliding_window": 8, "no_rope_layers": [1, 0, 1]}, "sliding_window"),
        ("llama", {"sliding_window": 8}, "sliding_window is 8"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer 1 of layer_types"),
        ("qwen3", {"layer_types": ["full_attention"]}, "expected 3, one a layer"),
        ("llama", {"mlp_bias": True}, "mlp_bias is True, which is not implemented"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ("llama", {"num_key_value_heads": 3}, "3 key/value heads do not divide"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads is 0; expected a positive integer"),
        ("llama", {"hidden_size": 30}, "4 heads do not divide; give head_dim"),
        ("llama", {"head_dim": 7}, "rotary pairs need an even width"),
        ("llama", {"head_dim": "8"}, "head_dim is '8'; expected a positive integer"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ("llama", {"num_key_value_head": 2}, "did you mean 'num_key_value_heads'"),
        ("llama", {"kv_lora_rank": 4}, "unknown key 'kv_lora_rank'"),
        ("mistral", {"attention_bias": True}, "unknown key 'attention_bias'"),
        ("llama", {"attention_bias": 1}, "expected true or false"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "expected 3 of 0 or 1"),
        ("llama", {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "implements 'default', 'linear', 'dynamic'"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "of type 'linear' without a factor"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3.0}}, "has no such setting"),
        ("llama", {"rope_scaling": LLAMA31 | {"high_freq_factor": 1.0}}, "expected less than high_freq_factor"),
        ("llama", {"rope_scaling": "linear"}, "expected an object"),
        ("llama", {"eos_token_id": -1}, "id of 0 or more"),
        ("llama", {"rms_norm_eps": 0.0}, "positive number"),
    ],
)
def test_what_is_not_implemented_is_refused(model_type: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(model_type, **changes)


def test_an_unknown_architecture_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"model_type is 'gemma3'; .*'llama', 'mistral', 'qwen2', 'qwen3', 'smollm3'"):
        read("gemma3")


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="needs attention of another kind than 'mla'"):
        ModelConfig(variant=Variant(selection=Everything()))
    with pytest.raises(ValueError, match="has no draft layer"):
        read().replace(model_type="glm_moe_dsa", num_nextn_predict_layers=1)
    with pytest.raises(ValueError, match="selects nothing"):
        read().replace(indexer_types=("full", "shared", "shared"))
    with pytest.raises(ValueError, match="by content; the variant is"):
        read().replace(variant=Variant())
    with pytest.raises(ValueError, match="has no such attention"):
        read("qwen3").replace(model_type="llama")
    with pytest.raises(ValueError, match="no_rope_layers has layer 9"):
        GroupedAttention(kv_heads=2, head_dim=8, no_rope_layers=(9,)).check(read())


def test_scalings_keep_high_frequencies_and_lower_low_ones() -> None:
    plain = RopeParameters(rope_theta=1e4).inverse_frequencies(32)
    llama = RopeParameters(rope_theta=1e4, factor=8.0, rope_type="llama3", original_max_position_embeddings=64)
    scaled = llama.inverse_frequencies(32)
    assert scaled[0] == plain[0] and scaled[-1] == pytest.approx(plain[-1] / 8)
    assert all(b / 8 <= a <= b for a, b in zip(scaled, plain, strict=True))
    linear = RopeParameters(rope_theta=1e4, factor=4.0, rope_type="linear").inverse_frequencies(32)
    assert linear == [frequency / 4 for frequency in plain]
    assert RopeParameters(rope_theta=1e4, factor=4.0, rope_type="dynamic").inverse_frequencies(32) == plain
    assert RopeParameters.from_public(
        {"rope_parameters": llama.to_public()}, context=1, kinds=("llama3",)
    ) == llama  # fmt: skip
