"""Checkpoints exchanged with transformers: nothing missing, nothing unexpected, bit-identical weights."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from indexshare import GlmMoeDsa, load_model, save_model
from indexshare.checkpoint.load import LoadReport
from indexshare.checkpoint.names import checkpoint_tensors, is_draft_tensor
from indexshare.checkpoint.tensor_files import SINGLE_FILE
from tests.parity.harness import build_public, glm_case, load_twin, transformers, twins
from tests.unit.checkpoint.checkpoints import assert_same_weights, random_model, tiny_config

Public = transformers.GlmMoeDsaForCausalLM


def load_public(folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The public model from a directory, and what its loader says about missing and unexpected names."""
    return Public.from_pretrained(folder, output_loading_info=True, **options)


def assert_nothing_missing(information: dict[str, Any], unexpected: set[str]) -> None:
    assert set(information["missing_keys"]) == set()
    assert set(information["unexpected_keys"]) == unexpected
    assert set(information["mismatched_keys"]) == set()
    assert not information.get("error_msgs")


def assert_same_as_public(model: GlmMoeDsa, public: Any) -> None:
    """Every tensor of the public model equals ours, bit for bit; ours has nothing beyond but the draft layer."""
    ours, theirs = model.state_dict(), public.state_dict()
    for name, tensor in theirs.items():
        assert torch.equal(ours.pop(name.removeprefix("model.")), tensor), name
    assert all(name.startswith("mtp.") for name in ours)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_transformers_to_ours_and_back(tmp_path: Path, seed: int, kind: torch.dtype) -> None:
    public = build_public(glm_case(seed)).to(kind)
    report = LoadReport()
    model = load_twin(public, tmp_path / "theirs", dtype=None, report=report)
    assert {parameter.dtype for parameter in model.parameters()} == {kind}
    assert report.dropped == {}
    assert_same_as_public(model, public)
    save_model(model, tmp_path / "ours")
    back, information = load_public(tmp_path / "ours")
    assert_nothing_missing(information, unexpected=set())
    assert_same_as_public(model, back)
    back.save_pretrained(tmp_path / "again")
    assert_same_weights(model, load_model(tmp_path / "again"))


def test_configuration_survives(tmp_path: Path) -> None:
    pair = twins("glm", 5)
    save_model(pair.ours, tmp_path / "ours")
    read = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    for key, value in pair.public.config.to_dict().items():
        if key not in ("transformers_version", "_name_or_path", "architectures", "dtype", "layer_types"):
            assert getattr(read, key) == value, key
    generation = json.loads((tmp_path / "ours" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == pair.public.config.eos_token_id


def test_draft_layer_of_a_small_model_is_all_that_transformers_does_not_know(tmp_path: Path) -> None:
    model = random_model()
    save_model(model, tmp_path / "ours")
    draft = {name for name in checkpoint_tensors(model.config) if is_draft_tensor(model.config, name)}
    public, information = load_public(tmp_path / "ours", dtype=torch.float32)
    stacked = {re.sub(r"experts\.\d+\.(gate|up)_proj\.weight", "experts.gate_up_proj", name) for name in draft}
    stacked = {re.sub(r"experts\.\d+\.down_proj\.weight", "experts.down_proj", name) for name in stacked}
    # transformers converts expert names before it looks at them; whatever it reports is a draft tensor.
    reported = set(information["unexpected_keys"])
    assert reported
    assert reported <= draft | stacked
    assert_nothing_missing(information, unexpected=reported)
    assert_same_as_public(model, public)
    # It does not write the draft layer, and says so through us: the trunk alone loads.
    public.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ValueError, match="every missing tensor belongs to the draft layer"):
        load_model(tmp_path / "theirs")
    trunk = load_model(tmp_path / "theirs", config_overrides={"num_nextn_predict_layers": 0})
    assert_same_as_public(trunk, public)


def test_layer_78_is_known_to_transformers(tmp_path: Path) -> None:
    """With the layer count of GLM-5.2 nothing at all is unexpected, draft layer included."""
    config = tiny_config(
        num_hidden_layers=78, indexer_types=(), mlp_layer_types=("dense",) * 76 + ("sparse",) * 2,
        n_routed_experts=2, index_head_dim=8, kv_lora_rank=8, q_lora_rank=8,
    )  # fmt: skip
    model = random_model(config)
    save_model(model, tmp_path / "ours")
    public, information = load_public(tmp_path / "ours", dtype=torch.float32)
    assert_nothing_missing(information, unexpected=set())
    assert_same_as_public(model, public)
    assert_same_weights(model, load_model(tmp_path / "ours"))


def test_stacked_experts_from_a_state_dict(tmp_path: Path) -> None:
    """The form transformers holds in memory, written as it is by programs that skip its converter."""
    pair = twins("glm", 0)
    pair.public.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in pair.public.state_dict().items()}
    assert any(name.endswith("experts.gate_up_proj") for name in state)
    assert state.keys() != load_file(tmp_path / SINGLE_FILE).keys()
    save_file(state, tmp_path / SINGLE_FILE, metadata={"format": "pt"})
    assert_same_weights(pair.ours, load_model(tmp_path))


def test_shards_written_by_transformers(tmp_path: Path) -> None:
    pair = twins("glm", 1)
    pair.public.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same_weights(pair.ours, load_model(tmp_path))


def test_shards_read_by_transformers(tmp_path: Path) -> None:
    pair = twins("glm", 1)
    save_model(pair.ours, tmp_path, max_shard_bytes=50_000)
    public, information = load_public(tmp_path)
    assert_nothing_missing(information, unexpected=set())
    assert_same_as_public(pair.ours, public)


def test_fp8_read_by_transformers(tmp_path: Path) -> None:
    """Its block dequantisation of what we write equals ours, bit for bit.

    Sizes are whole blocks or a single one: transformers 5.23 takes the block size from the ratio of the shapes,
    so it reads partial edge blocks (as in kv_a_proj of GLM-5.2) wrongly or not at all.
    """
    pytest.importorskip("accelerate", reason="transformers needs accelerate to read FP8")
    model = random_model(tiny_config(num_nextn_predict_layers=0, hidden_size=256)).bfloat16()
    save_model(model, tmp_path, quantization="fp8")
    scheme = transformers.FineGrainedFP8Config(dequantize=True)
    public, information = load_public(tmp_path, quantization_config=scheme, dtype=torch.bfloat16)
    assert_nothing_missing(information, unexpected=set())
    assert_same_as_public(load_model(tmp_path), public)
