"""`verify DIR`: what is planted in a directory is found, and a shipped model is clean."""

import json
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


def config(directory: Path, **changes: object) -> list[Finding]:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return check_directory(directory)


def test_a_wrong_shape(directory: Path) -> None:
    found = edit(directory, lambda t: t.__setitem__("model.norm.weight", torch.ones(33)))
    assert found[0].level == "error"
    assert "model.norm.weight has shape [33], expected [32]" in found[0].says


def test_a_wrong_type(directory: Path) -> None:
    found = edit(directory, lambda t: t.__setitem__("model.norm.weight", torch.ones(32, dtype=torch.int32)))
    assert "model.norm.weight is torch.int32, expected floating point" in found[0].says


def test_an_unexpected_tensor(directory: Path) -> None:
    found = edit(directory, lambda t: t.__setitem__("model.layers.0.mlp.up_proj.wieght", torch.ones(2)))
    assert "1 unexpected: model.layers.0.mlp.up_proj.wieght" in found[0].says


def test_another_type_than_stated(directory: Path) -> None:
    assert config(directory, dtype="float32") == []
    (found,) = config(directory, dtype="bfloat16")
    assert (found.level, found.place) == ("warning", "tensors")
    assert "are stored as float32, config.json says bfloat16" in found.says


def test_indexers_of_shared_layers_that_came_along(directory: Path) -> None:
    layer = 3
    name = f"model.layers.{layer}.self_attn.indexer.wk.weight"
    found = edit(directory, lambda t: t.__setitem__(name, torch.ones(2)))
    assert [(f.level, f.place) for f in found] == [("warning", "tensors")]
    assert f"1 tensors are not used (indexer of a Shared layer), {name} for one" in found[0].says


def fp8(directory: Path, name: str, scale: torch.Tensor) -> list[Finding]:
    """A matrix as blocks of FP8 with these scales."""
    settings = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    config(directory, quantization_config=settings)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        tensors[name + "_scale_inv"] = scale

    return edit(directory, change)


@pytest.mark.parametrize("value", [0.0, -1.0, torch.nan, torch.inf])
def test_scales_that_are_no_scales(directory: Path, value: float) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    shape = load_file(directory / "model.safetensors")[name].shape
    grid = [-(-n // 128) for n in shape]
    assert [f for f in fp8(directory, name, torch.ones(grid)) if f.level == "error"] == []
    found = edit(directory, lambda t: t[name + "_scale_inv"].fill_(value))
    assert ("error", name, "a block scale is not a positive number") in [(f.level, f.place, f.says) for f in found]


def test_a_scale_of_the_wrong_shape_or_missing(directory: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    found = fp8(directory, name, torch.ones(7, 7))
    assert f"{name}_scale_inv is torch.float32 [7, 7], expected float32" in found[0].says
    found = edit(directory, lambda t: t.pop(name + "_scale_inv"))
    assert f"{name} is FP8 but {name}_scale_inv is missing" in found[0].says


def test_infinite_values_and_a_norm_of_zeros(directory: Path) -> None:
    found = edit(directory, lambda t: t["lm_head.weight"].__setitem__((0, 0), torch.inf))
    assert [(f.level, f.place) for f in found] == [("error", "lm_head.weight")]
    found = edit(directory, lambda t: (t["lm_head.weight"].zero_(), t["model.norm.weight"].zero_()))
    assert ("error", "model.norm.weight", "a norm's weight is zero: nothing passes it") in [
        (f.level, f.place, f.says) for f in found
    ]


@pytest.mark.parametrize("part", ["wq_b", "wk", "weights_proj", "k_norm"])
def test_each_part_of_an_indexer_can_be_dead(directory: Path, part: str) -> None:
    name = f"model.layers.0.self_attn.indexer.{part}.weight"
    found = edit(directory, lambda t: t[name].zero_())
    assert [(f.level, f.place) for f in found] == [("error", name)]


def test_a_selection_as_large_as_the_context(directory: Path) -> None:
    (found,) = config(directory, index_topk=4096, max_position_embeddings=4096)
    assert (found.level, found.place) == ("warning", "config.json")
    assert "no indexer ever chooses, every text is attended in full" in found.says


def test_experts_of_a_group_that_can_never_be_chosen(tmp_path: Path) -> None:
    save_model(small_model(3, n_group=2, topk_group=1), tmp_path / "model")
    name = "model.layers.2.mlp.gate.e_score_correction_bias"
    found = edit(tmp_path / "model", lambda t: t[name].__setitem__(5, -3.0))
    assert [f.says for f in found if f.place == name] == [
        "1 experts can never be chosen, their correction bias is too low: 5"
    ]


def test_a_head_that_is_not_the_embedding_it_must_repeat(tmp_path: Path) -> None:
    save_model(small_model(3, vocab_size=320, n_group=1, topk_group=1, tie_word_embeddings=True), tmp_path / "model")
    train_bpe(["def f(x):\n    return x\n"] * 4, 320).save(tmp_path / "model")
    assert check_directory(tmp_path / "model") == []
    add = lambda change: edit(  # noqa: E731
        tmp_path / "model",
        lambda t: t.__setitem__("lm_head.weight", t["model.embed_tokens.weight"].clone() + change),
    )
    assert add(0.0) == []
    (found,) = add(1.0)
    assert (found.level, found.place) == ("error", "lm_head.weight")
    assert "it differs from model.embed_tokens.weight, which it must repeat" in found.says


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eos_token_id": 999}, "eos_token_id 999 is outside the vocabulary of 320"),
        ({"bos_token_id": 320}, "bos_token_id 320 is outside the vocabulary of 320"),
        ({"pad_token_id": 320}, "pad_token_id 320 is outside the vocabulary of 320"),
        ({"eos_token_id": None}, "no eos_token_id: texts end at the token limit only"),
        ({"eos_token_id": 5}, "its token that ends a text is 0, config.json's eos_token_id is [5]"),
    ],
)
def test_ids_that_the_tokenizer_or_the_vocabulary_does_not_have(
    directory: Path, changes: dict[str, object], message: str
) -> None:
    assert any(message in finding.says for finding in config(directory, **changes))


def test_no_tokenizer_and_no_configuration(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()
    (found,) = check_directory(directory)
    assert (found.level, found.place) == ("warning", "tokenizer.json")
    (directory / "config.json").unlink()
    with pytest.raises((FileNotFoundError, ValueError)):
        check_directory(directory)
