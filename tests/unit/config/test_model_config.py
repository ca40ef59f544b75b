"""ModelConfig: reading and writing public files, and refusals that name the fix."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from indexshare.config import PRESETS, ModelConfig, RopeParameters, SharePlan, preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_public_form_round_trips(name: str, tmp_path: Path) -> None:
    config = preset(name)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert ModelConfig.load(tmp_path) == config
    assert ModelConfig.load(tmp_path / "config.json").to_dict() == config.to_dict()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(ValueError, match=r"not a regular file; give a config\.json"):
            ModelConfig.load(path)


def test_indexer_rope_layout_follows_the_architecture() -> None:
    assert preset("glm-5.2").indexer_rope_interleave
    assert not preset("deepseek-v3.2").indexer_rope_interleave


def test_unknown_keys_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="did you mean 'index_topk'"):
        ModelConfig.from_dict(preset("tiny").to_dict() | {"index_topq": 3})


def test_carried_keys_survive() -> None:
    data = preset("tiny").to_dict() | {"transformers_version": "5.12.0", "ep_size": 1}
    assert ModelConfig.from_dict(data).to_dict()["transformers_version"] == "5.12.0"


def test_a_new_plan_drops_the_schedule_keys_it_contradicts() -> None:
    data = preset("tiny").to_dict() | {"index_topk_freq": 4, "index_skip_topk_offset": 3}
    config = ModelConfig.from_dict(data)
    assert config.to_dict()["index_topk_freq"] == 4
    changed = config.replace(indexer_types=SharePlan.all_full(6).types)
    assert "index_topk_freq" not in changed.to_dict()
    assert ModelConfig.from_dict(changed.to_dict()) == changed


def test_flat_rope_keys_of_older_files() -> None:
    data = preset("tiny").to_dict()
    del data["rope_parameters"]
    assert ModelConfig.from_dict(data | {"rope_theta": 5e5}).rope_parameters == RopeParameters(rope_theta=5e5)
    with pytest.raises(ValueError, match="rope_theta is missing"):
        ModelConfig.from_dict(data)


def test_misleading_head_dim_is_ignored() -> None:
    assert ModelConfig.from_dict(preset("glm-5.2").to_dict() | {"head_dim": 192}).qk_head_dim == 256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gptj"}, "implements"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"index_topk": 0}, "positive integer"),
        ({"indexer_types": 3}, "expected a list"),
        ({"index_topk_pattern": 3}, "string of F and S"),
        ({"mlp_layer_types": 3}, "expected a list"),
        ({"model_type": []}, "expected a string"),
        ({"n_shared_experts": "x"}, "expected an integer"),
        ({"rope_parameters": "x"}, "expected an object"),
        ({"rope_parameters": {"rope_theta": "x"}}, "expected a number"),
        ({"quantization_config": "x"}, "expected an object"),
        ({"eos_token_id": -1}, "id of 0 or more"),
        ({"eos_token_id": [3, "x"]}, "id of 0 or more"),
        ({"num_experts": 4}, "keep one"),
        ({"hidden_size": "32"}, "positive integer"),
        ({"rms_norm_eps": -1.0}, "positive number"),
        ({"num_nextn_predict_layers": 2}, "0 or 1"),
        ({"mlp_layer_types": ["dense"]}, "expected 6"),
        ({"indexer_types": ["shared"] * 6}, "layer 0"),
        ({"qk_rope_head_dim": 7, "qk_head_dim": 15}, "even"),
        ({"index_head_dim": 4}, "must hold"),
        ({"num_experts_per_tok": 9}, "only 8 experts"),
        ({"n_group": 3}, "does not divide"),
        ({"n_group": 8, "topk_group": 8}, "best two"),
        ({"topk_group": 2}, "above n_group"),
        ({"qk_head_dim": 11}, "qk_nope_head_dim"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3"}}, "yarn"),
        ({"rope_parameters": {"rope_theta": 1e4, "twist": 1}}, "twist"),
    ],
)
def test_bad_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(preset("tiny").to_dict() | changes)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="needs a config"):
        ModelConfig.load(tmp_path)
    for text, message in (("{", "not valid JSON"), ("[]", "expected a JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            ModelConfig.load(tmp_path)


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'glm-5.2'"):
        preset("glm-52")
