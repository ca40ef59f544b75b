"""The tensors a configuration implies: published counts, and exactly what the model has."""

import math
from collections import Counter

import pytest
import torch

from indexshare import GlmMoeDsa
from indexshare.checkpoint.names import checkpoint_tensors, expert_tensors
from indexshare.config.presets import preset
from tests.unit.checkpoint.checkpoints import tiny_config


def test_counts_of_the_released_checkpoint() -> None:
    tensors = checkpoint_tensors(preset("glm-5.2"))
    per_layer = Counter(name.split(".")[2] for name in tensors if name.startswith("model.layers."))
    assert (per_layer["10"], per_layer["11"], per_layer["78"]) == (787, 782, 791)
    parameters = sum(math.prod(spec.shape) for spec in tensors.values() if not spec.float32)
    assert parameters == 753_329_921_024
    indexers = {name.split(".")[2] for name in tensors if ".indexer.wk." in name}
    assert len(indexers) == 22
    # 1558 and 1565 tensors of a Shared and a Full layer with FP8 scales.
    converted = Counter(name.split(".")[2] for name, spec in tensors.items() if spec.quantizable)
    assert per_layer["11"] + converted["11"] == 1558
    assert per_layer["10"] + converted["10"] == 1565
    assert per_layer["78"] + converted["78"] == 1569


@pytest.mark.parametrize(
    "config",
    [
        preset("glm-5.2"),
        preset("deepseek-v3.2"),
        preset("nano"),
        tiny_config(attention_bias=True),
        tiny_config(n_shared_experts=0),
        tiny_config(num_nextn_predict_layers=0),
    ],
    ids=["glm-5.2", "deepseek-v3.2", "nano", "bias", "no shared expert", "no draft"],
)
def test_names_and_shapes_are_those_of_the_model(config) -> None:  # type: ignore[no-untyped-def]
    with torch.device("meta"):
        model = GlmMoeDsa(config)
    state = model.state_dict()
    specs = checkpoint_tensors(config)
    assert {spec.ours for spec in specs.values()} == state.keys()
    filled = Counter()  # type: ignore[var-annotated]
    for spec in specs.values():
        part = state[spec.ours][spec.index] if spec.index else state[spec.ours]
        assert tuple(part.shape) == spec.shape, spec.public
        filled[spec.ours] += part.numel()
    assert filled == {name: tensor.numel() for name, tensor in state.items()}


def test_stacked_form_covers_the_same_experts() -> None:
    config = tiny_config()
    for layer in range(config.num_layers_with_draft):
        single, stacked = (expert_tensors(config, layer, form) for form in ("per_expert", "stacked"))
        assert {spec.ours for spec in single} == {spec.ours for spec in stacked}
        assert sum(math.prod(s.shape) for s in single) == sum(math.prod(s.shape) for s in stacked)
    assert expert_tensors(config, 0, "stacked") == []


def test_tied_models_have_no_head_of_their_own() -> None:
    assert "lm_head.weight" not in checkpoint_tensors(tiny_config(tie_word_embeddings=True))
