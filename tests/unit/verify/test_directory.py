"""`verify DIR`: what is planted in a directory is found, and a shipped model is clean."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from indexshare.checkpoint.load import save_model
from indexshare.config.shipped import shipped_models
from indexshare.text.tokenizer import train_bpe
from indexshare.verify.directory import Finding, check_directory
from tests.unit.verify.conftest import small_model


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    model = small_model(3, vocab_size=320, n_group=1, topk_group=1)
    save_model(model, tmp_path / "model")
    train_bpe(["def f(x):\n    return x\n"] * 4, 320).save(tmp_path / "model")
    return tmp_path / "model"


def edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> list[Finding]:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return check_directory(directory)


def test_a_sound_directory_is_clean(directory: Path) -> None:
    assert check_directory(directory) == []


@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_shipped_models_are_clean(name: str) -> None:
    assert [f for f in check_directory(shipped_models()[name]) if f.level == "error"] == []


def test_values_that_are_not_numbers(directory: Path) -> None:
    found = edit(directory, lambda t: t["model.norm.weight"].__setitem__(0, torch.nan))
    assert [(f.level, f.place) for f in found] == [("error", "model.norm.weight")]
    assert "1 of 32 values are NaN or infinite" in found[0].says


def test_a_missing_tensor(directory: Path) -> None:
    found = edit(directory, lambda t: t.pop("model.norm.weight"))
    assert found[0].level == "error"
    assert "1 missing: model.norm.weight" in found[0].says


def test_an_indexer_that_never_chooses(directory: Path) -> None:
    found = edit(directory, lambda t: t["model.layers.1.self_attn.indexer.wk.weight"].zero_())
    assert [f.place for f in found] == ["model.layers.1.self_attn.indexer.wk.weight"]
    assert "chooses the first tokens of every text" in found[0].says


def test_experts_that_can_never_be_chosen(directory: Path) -> None:
    name = "model.layers.2.mlp.gate.e_score_correction_bias"
    found = edit(directory, lambda t: t[name].__setitem__(5, -3.0))
    assert [(f.level, f.place) for f in found] == [("warning", name)]
    assert "1 experts can never be chosen, their correction bias is too low: 5" in found[0].says


def test_experts_that_add_nothing(directory: Path) -> None:
    found = edit(directory, lambda t: t["model.layers.2.mlp.experts.3.down_proj.weight"].zero_())
    assert [(f.level, f.place) for f in found] == [("warning", "layer 2")]


def test_scales_that_were_not_applied(directory: Path) -> None:
    found = edit(directory, lambda t: t["model.layers.0.mlp.up_proj.weight"].mul_(1e6))
    assert "damaged, or its scale was not applied" in found[0].says


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer.json", lambda text: "{", "cannot read"),
        ("generation_config.json", lambda text: '{"eos_token_id": [0, 7]}', "differs from config.json's [0]"),
        ("chat_template.jinja", lambda text: "{% for %}", "not valid"),
        ("chat_template.jinja", lambda text: "<|nobody|>", "which the tokenizer does not have as one token"),
    ],
)
def test_files_beside_the_weights(directory: Path, file: str, change: Any, message: str) -> None:
    (directory / file).write_text(change(""))
    assert any(message in finding.says for finding in check_directory(directory))


def test_a_tokenizer_with_more_ids_than_embeddings(tmp_path: Path) -> None:
    save_model(small_model(3, vocab_size=262, n_group=1, topk_group=1), tmp_path / "model")
    train_bpe(["def f(x):\n    return x\n"] * 4, 320).save(tmp_path / "model")
    (found,) = check_directory(tmp_path / "model")
    assert (found.level, found.place) == ("error", "tokenizer.json")
    assert "the model has 262 embeddings" in found.says
