"""One setting in two spellings, values of odd types, and numbers too large: agreed upon, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from indexshare.config import ModelConfig, RopeParameters, preset
from indexshare.config.generation import GenerationDefaults

YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 1.0}
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}
THETA = {"rope_theta": 1e4}


def public(**changes: Any) -> dict[str, Any]:
    """The `tiny` preset's file, keys set to `...` left out."""
    data = preset("tiny").to_dict() | {"model_type": "deepseek_v32", "indexer_types": ["full"] * 6} | changes
    return {key: value for key, value in data.items() if value is not ...}


def rope(**changes: Any) -> RopeParameters:
    return ModelConfig.from_dict(public(**changes)).rope_parameters


EXTENDED = RopeParameters(
    rope_theta=1e4, rope_type="yarn", factor=4.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=1.0
)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": YARN | THETA},
        {"rope_parameters": ..., "rope_scaling": YARN, **THETA},
        {"rope_parameters": DEFAULT, "rope_scaling": YARN},
        {"rope_parameters": DEFAULT, "rope_scaling": YARN | THETA},
        {"rope_parameters": DEFAULT, "rope_scaling": YARN, **THETA},
        {"rope_parameters": YARN | THETA, "rope_scaling": YARN | THETA},
        {"rope_parameters": {}, "rope_scaling": YARN | THETA},
        {"rope_parameters": None, "rope_scaling": YARN | THETA, "rope_theta": None},
        {"rope_parameters": YARN | THETA, "rope_scaling": None},
        {"rope_parameters": YARN | THETA | {"rope_type": "yarn", "partial_rotary_factor": 1.0, "truncate": True}},
        {"rope_parameters": YARN | THETA | {"attention_factor": None}, "partial_rotary_factor": 1},
    ],
)
def test_spellings_of_one_scaling(changes: dict[str, Any]) -> None:
    assert rope(**changes) == EXTENDED
    config = ModelConfig.from_dict(public(**changes))
    assert ModelConfig.from_dict(config.to_dict()).rope_parameters == EXTENDED, "kept on saving"


def test_yarn_without_its_original_length_extends_the_context() -> None:
    short = {key: value for key, value in YARN.items() if key != "original_max_position_embeddings"}
    found = rope(rope_parameters=short | THETA, max_position_embeddings=777)
    assert found.original_max_position_embeddings == 777
    given = rope(rope_parameters=YARN | THETA | {"attention_factor": 0.5})
    assert (given.table_scale, given.to_public()["attention_factor"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_parameters": DEFAULT, "rope_theta": 5e5}, "rope_theta is 10000.0 in rope_parameters, but 500000.0 in"),
        ({"rope_parameters": DEFAULT, "rope_scaling": YARN | {"rope_theta": 2e4}}, "keep one"),
        ({"rope_parameters": {"rope_theta": 8e6}, "rope_scaling": YARN}, "transformers then forgets rope_theta"),
        ({"rope_parameters": YARN | THETA, "rope_scaling": YARN | {"factor": 8.0}}, "disagree"),
        ({"rope_parameters": YARN | THETA, "rope_scaling": {"rope_type": "default"}}, "disagree"),
        ({"rope_parameters": YARN | THETA | {"rope_type": "default"}}, "but its type is 'yarn'; keep one"),
        ({"rope_parameters": THETA | {"type": "yarn"}}, "of type 'yarn' without a factor"),
        ({"rope_parameters": YARN | THETA | {"factor": None}}, "of type 'yarn' without a factor"),
        ({"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor .* 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": DEFAULT | {"factor": 4.0}}, "factor in rope_parameters is 4.0, but its rope_type is 'def"),
        ({"rope_parameters": {**THETA, "mscale": 1.0}}, "mscale in rope_parameters is 1.0"),
        ({"rope_parameters": DEFAULT | {"x" * 10**5: 1}}, "unknown key 'xxx"),
        ({"indexshare": ["x"] * 10**5}, "indexshare is .*expected a JSON object"),
        ({"layer_types": ["x" * 10**5]}, "layer 0 of layer_types is 'xxx"),
        ({"indexer_types": ..., "index_topk_pattern": "F" * 10**5 + "x"}, "position 100000 of the pattern 'FFF"),
        ({"model_type": "x" * 10**5}, "model_type is 'xxx"),
        ({"rope_parameters": YARN | THETA | {"truncate": False}}, "truncate in rope_parameters is False"),
        ({"rope_parameters": YARN | THETA | {"beta_fast": 0}}, "beta_fast is 0; expected a number from 0.001"),
        ({"rope_parameters": YARN | THETA | {"beta_fast": 0.5}}, "beta_fast is 0.5, below beta_slow"),
        ({"rope_parameters": YARN | THETA | {"factor": 1e400}}, "factor is inf"),
        ({"rope_parameters": {"rope_theta": 10**400}}, "rope_theta is 1000"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta is nan"),
        ({"rope_parameters": YARN | THETA | {"original_max_position_embeddings": 64.0}}, "original_max"),
        ({"rope_parameters": DEFAULT | {"rope_type": ["yarn"]}}, "rope_type is"),
        ({"num_experts": 8, "num_local_experts": 4, "n_routed_experts": ...}, "num_local_experts is 4, but"),
        ({"num_experts": 0}, "num_experts is 0, but n_routed_experts is 8"),
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1, but num_attention_heads"),
        ({"layer_types": ["sliding_attention"] * 6}, "layer 0 of layer_types is 'sliding_attention'"),
        ({"q_lora_rank": None}, "q_lora_rank is null"),
        ({"first_k_dense_replace": None, "mlp_layer_types": ...}, "first_k_dense_replace is null"),
        ({"first_k_dense_replace": -1, "mlp_layer_types": ...}, "first_k_dense_replace is -1"),
        ({"mlp_layer_types": [["dense"]] * 6}, "mlp_layer_types is .*list of words"),
        ({"indexer_types": ..., "index_topk_pattern": [["F"]] * 6}, "index_topk_pattern is"),
        ({"bos_token_id": [1]}, "bos_token_id is"),
        ({"eos_token_id": [1, None]}, "eos_token_id is"),
        ({"eos_token_id": 10**30}, "eos_token_id is"),
        ({"hidden_size": 10**30}, "hidden_size is 1000.*at most 2147483647"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; expected at most 4096"),
        ({"n_routed_experts": 10**6}, "n_routed_experts is 1000000 in each of 6 layers"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf"),
        ({"rms_norm_eps": True}, "rms_norm_eps is True"),
        ({"routed_scaling_factor": 10**400}, "routed_scaling_factor is 1000"),
        ({"dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn'; expected one of"),
        ({"quantization_config": []}, "expected an object"),
        ({"sliding_window": 4096}, "sliding_window is 4096, which is not implemented; expected None"),
        ({"moe_layer_freq": True}, "moe_layer_freq is True"),
        ({"a" * 10**6: 1}, "unknown key 'aaa"),
    ],
)  # fmt: skip
def test_what_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        ModelConfig.from_dict(public(**changes))
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


def test_values_that_change_nothing_pass_and_stay() -> None:
    neutral = {
        "sliding_window": None, "use_sliding_window": False, "tie_encoder_decoder": False, "pruned_heads": {},
        "partial_rotary_factor": 1.0, "num_labels": 2, "max_length": 20, "layer_types": ["indexed_attention"] * 6,
        "num_local_experts": 8, "head_dim": 12345, "first_k_dense_replace": 5,
    }  # fmt: skip
    config = ModelConfig.from_dict(public(**neutral))
    assert config == ModelConfig.from_dict(public())
    assert {key: config.to_dict()[key] for key in ("sliding_window", "num_labels", "max_length")} == {
        "sliding_window": None, "num_labels": 2, "max_length": 20,
    }  # fmt: skip


def test_settings_of_generation_in_an_old_configuration(tmp_path: Path) -> None:
    """From before they had a file of their own; as in transformers, that file takes their place."""
    (tmp_path / "config.json").write_text(json.dumps(public(temperature=0.5, do_sample=True, eos_token_id=[3, 4])))
    old = GenerationDefaults.load(tmp_path)
    assert (old.temperature, old.samples, old.eos_token_ids) == (0.5, True, (3, 4))
    assert ModelConfig.load(tmp_path).extra["temperature"] == 0.5
    (tmp_path / "generation_config.json").write_text("{}")
    assert GenerationDefaults.load(tmp_path) == GenerationDefaults()


def test_numbers_of_numpy_are_numbers() -> None:
    import numpy as np

    config = preset("tiny").replace(hidden_size=np.int64(64), rms_norm_eps=np.float32(1e-5))
    assert type(config.hidden_size) is int and type(config.rms_norm_eps) is float
    assert json.loads(json.dumps(config.to_dict()))["hidden_size"] == 64


@pytest.mark.parametrize("text", ["[" * 10**5, '{"hidden_size": 1' + "0" * 5000 + "}", "\ufeff{}", "{}}", '"x"'])
def test_files_that_are_no_objects(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json (is not valid JSON|holds a str)"):
        ModelConfig.load(tmp_path)
