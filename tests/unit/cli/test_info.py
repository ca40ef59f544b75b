"""`indexshare info` on presets, directories and wrong names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_glm_5_2_counts_every_parameter_without_allocating(run: Callable[..., Any]) -> None:
    result = run("info", "glm-5.2", "--json")
    facts = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    assert facts["parameters"]["total"] == 753_329_921_024
    assert facts["parameters"]["total"] - facts["parameters"]["draft"] == facts["parameters"]["trunk"]
    assert sum(facts["parameters"]["parts"].values()) == facts["parameters"]["trunk"]
    assert facts["full_layers"] == [0, 1, 2, *range(6, 75, 4)]
    assert facts["context"] == 1_048_576
    # Per token in bfloat16: 78 latents of 576 values and 21 index keys of 128.
    cache = facts["cache_bytes_per_token"]["bfloat16"]
    assert cache["latents"] == 78 * 576 * 2
    assert cache["index_keys"] == 21 * 128 * 2
    assert cache["total_with_draft"] == (79 * 576 + 22 * 128) * 2


@pytest.mark.parametrize("name", ["glm-5.2", "glm-5.1", "deepseek-v3.2", "nano", "tiny"])
def test_every_preset_is_shown(run: Callable[..., Any], name: str) -> None:
    result = run("info", name)
    facts = json.loads(run("info", name, "--json").out)
    assert (result.code, result.err) == (0, "")
    assert f"{facts['parameters']['total']:,}" in result.out
    assert f"{facts['cache_bytes_per_token']['bfloat16']['total']:,}" in result.out
    picture = [line.split()[1] for line in result.out.splitlines() if line[:4].strip().isdigit()]
    assert "".join(picture) == facts["pattern"]
    assert len(facts["pattern"]) == facts["layers"]


def test_output_is_plain_when_nobody_watches(run: Callable[..., Any]) -> None:
    text = run("info", "glm-5.2").out
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_directory_is_described(run: Callable[..., Any], model_dir: Path) -> None:
    facts = json.loads(run("info", model_dir, "--json").out)
    assert facts["source"] == "directory"
    assert facts["pattern"] == "FFFSSS"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glm5.2", "did you mean 'glm-5.2'?"),
        ("GLM-5.2", "did you mean 'glm-5.2'?"),
        ("nanoo", "did you mean 'nano'?"),
        ("zzz", "no model 'zzz': not a directory, nor one of "),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(run: Callable[..., Any], name: str, message: str) -> None:
    result = run("info", name)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert message in result.err
    assert result.err.count("\n") == 1


def test_directories_that_hold_no_model(run: Callable[..., Any], tmp_path: Path) -> None:
    assert "has no config.json" in run("info", tmp_path).err
    (tmp_path / "config.json").write_text("{")
    assert "not valid JSON" in run("info", tmp_path).err
    (tmp_path / "config.json").write_text('{"model_type": "gptj"}')
    assert "model_type is 'gptj'" in run("info", tmp_path).err
    assert "model_type is 'gptj'" in run("info", tmp_path / "config.json").err


def test_a_configuration_file_is_described(run: Callable[..., Any], model_dir: Path) -> None:
    facts = json.loads(run("info", model_dir / "config.json", "--json").out)
    assert facts["source"] == "configuration file"
    assert facts["pattern"] == "FFFSSS"


def test_a_dense_model(run: Callable[..., Any], tmp_path: Path) -> None:
    sizes = {"model_type": "llama", "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"hidden_size": 64, "intermediate_size": 96}))
    shown = run("info", tmp_path).out
    assert "4, all of which attend to every token" in shown
    assert "8 heads, 2 of keys and values, 8 wide" in shown
    facts = json.loads(run("info", tmp_path, "--json").out)
    assert (facts["index_topk"], facts["full_layers"], facts["routed_experts"]) == (None, [], 0)
    assert set(facts["cache_bytes_per_token"]["bfloat16"]) >= {"keys", "values"}
