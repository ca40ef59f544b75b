"""What a type cannot hold is refused by the tensor's name, with a fix that works; nothing is left behind."""

from pathlib import Path

import pytest
import torch

from indexshare import load_model, save_model
from indexshare.adapt.quantized import quantize_weights
from indexshare.checkpoint.values import holds, narrowed
from indexshare.export.gguf import export_gguf
from indexshare.model.glm import GlmMoeDsa
from tests.unit.checkpoint.checkpoints import assert_same_weights, random_model, saved

NAME = r"'model\.layers\.1\.self_attn\.q_a_proj\.weight'"


def with_value(value: float) -> GlmMoeDsa:
    model = random_model()
    with torch.no_grad():
        model.layers[1].self_attn.q_a_proj.weight[2, 1] = value
    return model


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e5, "float16", r"holds 100000, which float16 \(at most 65504\) cannot hold; write it as bfloat16 \(dtype='b"),
        (-65520.0, "float16", "holds 65520, which float16"),
        (3.4e38, "bfloat16", r"holds 3\.4e\+38, which bfloat16 .* cannot hold; write it as float32"),
        (3.4e38, "float16", r"holds 3\.4e\+38, .*; write it as float32"),
        (float("nan"), "float32", "holds NaN or an infinity; check_finite=False writes it anyway"),
        (float("-inf"), None, "holds NaN or an infinity"),
    ],
)
def test_what_does_not_fit_is_not_saved(value: float, dtype: str | None, message: str, tmp_path: Path) -> None:
    model = with_value(value)
    with pytest.raises(ValueError, match=f"tensor {NAME} {message}") as error:
        save_model(model, tmp_path / "m", dtype=dtype)
    assert list(tmp_path.iterdir()) == []
    for fix in ("bfloat16", "float32"):
        if f"dtype='{fix}'" in str(error.value):
            save_model(model, tmp_path / "m", dtype=fix)
            load_model(tmp_path / "m")


def test_what_fits_is_saved(tmp_path: Path) -> None:
    for value, dtype in ((65504.0, "float16"), (65519.0, "float16"), (3.38e38, "bfloat16"), (3.4e38, "float32")):
        save_model(with_value(value), tmp_path / "m", dtype=dtype)
        assert torch.isfinite(load_model(tmp_path / "m").layers[1].self_attn.q_a_proj.weight).all()
    bad = with_value(float("inf"))
    save_model(bad, tmp_path / "m", check_finite=False)
    assert_same_weights(bad, load_model(tmp_path / "m", check_finite=False))


def test_a_number_too_large_for_the_type_it_is_loaded_in(tmp_path: Path) -> None:
    saved(tmp_path / "m", with_value(1e5))
    with pytest.raises(ValueError, match=NAME + r".*\(as float16\), or a number too large .* dtype='float32' holds"):
        load_model(tmp_path / "m", dtype="float16")
    load_model(tmp_path / "m", dtype="float32")
    save_model(with_value(1e5), tmp_path / "m", quantization="fp8")
    with pytest.raises(ValueError, match=NAME + r".*\(as float16\), or a number too large"):
        load_model(tmp_path / "m", dtype="float16")
    load_model(tmp_path / "m", dtype="float32")


def test_gguf(tmp_path: Path) -> None:
    """Scales of q8_0 are float16: the largest value is 127 of them."""
    out = tmp_path / "out.gguf"
    for value, kind, message in (
        (1e7, "q8_0", r"'blk\.1\.attn_q_a\.weight' holds 1e\+07, beyond a scale of q8_0 .*; export it as bf16"),
        (3.4e38, "bf16", r"'blk\.1\.attn_q_a\.weight' holds 3\.4e\+38, which bfloat16 .* cannot hold"),
    ):
        saved(tmp_path / "m", with_value(value))
        with pytest.raises(ValueError, match=message):
            export_gguf(tmp_path / "m", out, type=kind, tokenizer=False)  # type: ignore[arg-type]
        assert not out.exists()
    saved(tmp_path / "m", with_value(1e7))
    export_gguf(tmp_path / "m", out, tokenizer=False)
    saved(tmp_path / "m", with_value(65504.0 * 127))
    export_gguf(tmp_path / "m", out, type="q8_0", tokenizer=False)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_packed_weights(weights: str) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_a_proj\.weight: .* NaN or an infinity"):
            quantize_weights(with_value(value), weights)
    with pytest.raises(ValueError, match=r"q_a_proj\.weight: .* a number above 3\.3e\+38"):
        quantize_weights(with_value(3.4e38), weights)
    packed = quantize_weights(with_value(3.3e38), weights).layers[1].self_attn.q_a_proj
    assert torch.isfinite(packed.weight).all() and torch.isfinite(packed.plain("rows").bfloat16()).all()


def test_narrowing() -> None:
    assert narrowed(torch.empty(0), torch.float16, "x").dtype == torch.float16
    assert (holds(torch.float16, 65519.9), holds(torch.float16, 65520.0)) == (True, False)
    with pytest.raises(ValueError, match="no type of a checkpoint does"):
        narrowed(torch.tensor([1e300], dtype=torch.float64), torch.float32, "x")
