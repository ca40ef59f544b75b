"""Weights packed as they are read are those that are packed afterwards, whatever form the files have."""

from pathlib import Path
from typing import Literal

import pytest
import torch

from indexshare.adapt.quantized import Packing, packing, quantize_weights
from indexshare.checkpoint.load import LoadReport, load_model
from indexshare.checkpoint.save import save_model
from indexshare.model.glm import GlmMoeDsa
from indexshare.ops.packed import packing as layout
from tests.unit.checkpoint.checkpoints import (
    assert_same_weights,
    change,
    random_model,
    saved,
    tiny_config,
    to_stacked,
)


def both(folder: Path, weights: str, dtype: str = "float32") -> tuple[GlmMoeDsa, GlmMoeDsa]:
    return load_model(folder, dtype=dtype, adapt=packing(weights)), quantize_weights(
        load_model(folder, dtype=dtype), weights
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_same_as_packing_afterwards(tmp_path: Path, weights: str, dtype: str) -> None:
    model = random_model(tiny_config(attention_bias=True))
    one, other = both(saved(tmp_path / "m", model), weights, dtype)
    assert_same_weights(one, other)
    ids = torch.randint(2, 200, (2, 30))
    with torch.no_grad():
        assert torch.equal(one(ids), other(ids))
    assert not one.training
    assert one.config == other.config


@pytest.mark.parametrize("form", ["stacked", "fp8", "tied", "no draft"])
def test_other_forms_of_files(tmp_path: Path, form: Literal["stacked", "fp8", "tied", "no draft"]) -> None:
    changes = {"tied": {"tie_word_embeddings": True}, "no draft": {"num_nextn_predict_layers": 0}}.get(form, {})
    model, folder = random_model(tiny_config(**changes)), tmp_path / "m"
    save_model(model, folder, quantization="fp8" if form == "fp8" else None)
    if form == "stacked":
        change(folder, lambda tensors: to_stacked(tensors, model.config))
    assert_same_weights(*both(folder, "int4"))


def test_the_report_is_that_of_any_loading(tmp_path: Path) -> None:
    folder, plain, packed = saved(tmp_path / "m"), LoadReport(), LoadReport()
    load_model(folder, dtype="bfloat16", report=plain)
    load_model(folder, dtype="bfloat16", adapt=packing("int8"), report=packed)
    for report in (plain, packed):
        report.seconds = 0.0
    assert plain == packed


def test_matrices_are_packed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of rows, the last one short, exactly as at once."""
    weight = torch.randn(3, 75, 40)
    whole = layout.pack(weight, 4)
    monkeypatch.setattr(layout, "_VALUES_AT_A_TIME", 1)
    parts = layout.pack(weight, 4)
    assert torch.equal(whole.values, parts.values)
    assert torch.equal(whole.scales, parts.scales)


def test_mistakes_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    with pytest.raises(ValueError, match="weights is 'int5'; expected one of int8, int4"):
        packing("int5")
    assert packing(None) is None
    with pytest.raises(ValueError, match="runs on the CPU only, the model is on cuda"):
        Packing(load_model(folder), "int8", torch.float32, torch.device("cuda"))
    with pytest.raises(ValueError, match="device is 'meta'; expected cpu, cuda"):
        load_model(folder, device="meta", adapt=packing("int8"))
    name = "model.layers.2.self_attn.o_proj.weight"
    change(folder, lambda tensors: tensors[name].fill_(torch.nan))
    with pytest.raises(ValueError, match=f"tensor '{name}' in .* holds NaN"):
        load_model(folder, adapt=packing("int8"))
    with pytest.raises(ValueError, match=r"layers.2.self_attn.o_proj.weight: cannot quantize to 8 bits"):
        load_model(folder, adapt=packing("int8"), check_finite=False)
