"""The GGUF file: every tensor with its values, keys, stable bytes, and what is refused."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import indexshare.export.source
from indexshare import GlmMoeDsa, ModelConfig, save_model
from indexshare.checkpoint.tensor_files import SINGLE_FILE
from indexshare.config.presets import preset
from indexshare.config.rope import RopeParameters
from indexshare.config.shipped import model_directory
from indexshare.export.gguf import FILE_TYPES, export_gguf
from indexshare.export.llama_cpp import architecture, hyperparameters
from tests.unit.export.cases import config_of, saved, stack_experts
from tests.unit.export.llama_graph import read, types

# Of a checkpoint whose values are simple fractions, so that only our code and the format can change the bytes.
PINNED = {
    "bf16": "72fb0e9d61eca9676c4c257d757971b49def0eb511b20f13b84e9c9c59ce3226",
    "q8_0": "adc3549191f111eac6df1f35438b1dadff0884737bca9381fe62064109023431",
}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@torch.no_grad()
def fractions(folder: Path) -> Path:
    """A checkpoint made of multiples of 1/16 by formula."""
    model = GlmMoeDsa(config_of())
    for number, tensor in enumerate([*model.parameters(), *model.buffers()]):
        values = (torch.arange(tensor.numel()) * 7 + number * 13) % 31 - 15
        tensor.copy_(values.view(tensor.shape) / 16)
    save_model(model, folder, dtype="bfloat16")
    return folder


def restored(config: ModelConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The public tensors of a file whose index heads are not widened, undone by a rule of their own."""
    names = {
        "attn_norm": "input_layernorm", "attn_q_a": "self_attn.q_a_proj", "attn_q_a_norm": "self_attn.q_a_layernorm",
        "attn_q_b": "self_attn.q_b_proj", "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm": "self_attn.kv_a_layernorm", "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.gate", "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
        "ffn_up_shexp": "mlp.shared_experts.up_proj", "ffn_down_shexp": "mlp.shared_experts.down_proj",
        "indexer.attn_q_b": "self_attn.indexer.wq_b", "indexer.attn_k": "self_attn.indexer.wk",
        "indexer.k_norm": "self_attn.indexer.k_norm", "indexer.proj": "self_attn.indexer.weights_proj",
        "nextn.eh_proj": "eh_proj", "nextn.enorm": "enorm", "nextn.hnorm": "hnorm",
        "nextn.shared_head_norm": "shared_head.norm",
    }  # fmt: skip
    top = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    top |= {"output.weight": "lm_head.weight"}
    public: dict[str, torch.Tensor] = {}
    for name, values in tensors.items():
        if name in top:
            public[top[name]] = values
            continue
        _, number, rest = name.split(".", 2)
        layer, (stem, ending) = f"model.layers.{number}.", rest.rsplit(".", 1)
        if stem in ("attn_k_b", "attn_v_b"):
            keys, heads = tensors[f"blk.{number}.attn_k_b.weight"], tensors[f"blk.{number}.attn_v_b.weight"]
            public[f"{layer}self_attn.kv_b_proj.weight"] = torch.cat((keys.mT, heads), 1).flatten(0, 1)
        elif stem == "exp_probs_b":
            public[f"{layer}mlp.gate.e_score_correction_bias"] = values
        elif stem.endswith("_exps"):
            matrix = stem.removeprefix("ffn_").removesuffix("_exps")
            for expert, one in enumerate(values):
                public[f"{layer}mlp.experts.{expert}.{matrix}_proj.weight"] = one
        else:
            public[f"{layer}{names[stem]}.{ending}"] = values
    return public


def test_every_tensor_comes_back(tmp_path: Path) -> None:
    config = config_of(index_head_dim=64)
    saved(tmp_path / "model", config)
    report = export_gguf(tmp_path / "model", tmp_path / "out.gguf", tokenizer=False)
    stored = load_file(tmp_path / "model" / SINGLE_FILE)
    public = restored(config, read(tmp_path / "out.gguf")[1])
    assert public.keys() == stored.keys()
    for name, values in stored.items():
        assert torch.equal(public[name], values.float()), name
    assert report.num_bytes == (tmp_path / "out.gguf").stat().st_size
    assert (report.not_quantized, report.dropped, report.pre_tokenizer) == ([], {}, None)


def test_the_shipped_model_comes_back(tmp_path: Path) -> None:
    directory = model_directory("nano")
    config = ModelConfig.load(directory)
    for type in FILE_TYPES:
        report = export_gguf("nano", tmp_path / f"{type}.gguf", type=type)  # type: ignore[arg-type]
        assert report.architecture == "glm-dsa"
        assert sum(report.tensors.values()) == len(types(report.path))
    stored = load_file(directory / SINGLE_FILE)
    exact = restored(config, read(tmp_path / "bf16.gguf")[1])
    rounded = restored(config, read(tmp_path / "q8_0.gguf")[1])
    assert exact.keys() == rounded.keys() == stored.keys()
    widened = (".wq_b.", ".wk.", ".k_norm.") if config.index_head_dim < 64 else ()
    for name, values in stored.items():
        if any(part in name for part in widened):
            continue  # `test_llama_graph.py` checks what these do
        plain = values.float()
        assert torch.equal(exact[name], plain), name
        # Half a step of the largest value of a block, and the float16 rounding of the step.
        assert (rounded[name] - plain).abs().max() <= plain.abs().max() * (0.5 / 127 + 2**-10), name


def test_what_stays_float32_and_what_is_not_quantized(tmp_path: Path) -> None:
    saved(tmp_path / "model", config_of())
    report = export_gguf(tmp_path / "model", tmp_path / "out.gguf", type="q8_0", tokenizer=False)
    kinds = types(tmp_path / "out.gguf")
    precise = ("_norm.weight", "norm.weight", ".bias", "ffn_gate_inp.weight", "indexer.proj.weight")
    for name, kind in kinds.items():
        assert (kind == "F32") == name.endswith(precise), name
    assert report.not_quantized == [name for name, kind in kinds.items() if kind == "BF16"]
    assert "blk.0.attn_k_b.weight" in report.not_quantized  # rows of 8
    assert kinds["blk.0.attn_q_a.weight"] == "Q8_0"  # rows of 32
    assert report.tensors == {kind: list(kinds.values()).count(kind) for kind in ("BF16", "F32", "Q8_0")}


def test_index_tensors_only_where_there_is_an_indexer(tmp_path: Path) -> None:
    saved(tmp_path / "model", config_of())
    export_gguf(tmp_path / "model", tmp_path / "out.gguf", tokenizer=False)
    blocks = {int(name.split(".")[1]) for name in types(tmp_path / "out.gguf") if ".indexer." in name}
    assert blocks == {0, 1, 3, 4}


def test_keys_say_what_the_configuration_says(tmp_path: Path) -> None:
    saved(tmp_path / "model", config_of())
    export_gguf(tmp_path / "model", tmp_path / "out.gguf", tokenizer=False)
    keys = read(tmp_path / "out.gguf")[0]
    assert list(keys)[:4] == [
        "general.architecture", "general.type", "general.file_type", "general.quantization_version",
    ]  # fmt: skip
    assert keys.pop("tokenizer.ggml.model") == "no_vocab"
    ours = {name: value for name, value in keys.items() if name.startswith("glm-dsa.")}
    expected = hyperparameters(config_of())
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert ours[name] == (pytest.approx(value, rel=1e-7) if isinstance(value, float) else value), name


def test_the_published_model() -> None:
    """The keys of files in circulation for GLM-5.2, by value, and the plan, which those files leave out."""
    keys = {name.removeprefix("glm-dsa."): value for name, value in hyperparameters(preset("glm-5.2")).items()}
    types = keys.pop("attention.indexer.types")
    assert isinstance(types, list)
    assert [layer for layer, full in enumerate(types) if full] == [0, 1, *range(2, 78, 4)]
    assert keys == {
        "block_count": 79, "nextn_predict_layers": 1, "context_length": 1048576, "embedding_length": 6144,
        "feed_forward_length": 12288, "leading_dense_block_count": 3, "expert_count": 256, "expert_used_count": 8,
        "expert_shared_count": 1, "expert_feed_forward_length": 2048, "expert_weights_scale": 2.5,
        "expert_weights_norm": True, "expert_gating_func": 2, "expert_group_count": 1, "expert_group_used_count": 1,
        "attention.head_count": 64, "attention.head_count_kv": 1, "attention.q_lora_rank": 2048,
        "attention.kv_lora_rank": 512, "attention.key_length": 576, "attention.value_length": 512,
        "attention.key_length_mla": 256, "attention.value_length_mla": 256, "rope.dimension_count": 64,
        "rope.freq_base": 8e6, "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-6,
        "attention.indexer.head_count": 32, "attention.indexer.key_length": 128, "attention.indexer.top_k": 2048,
        "vocab_size": 154880,
    }  # fmt: skip


@pytest.mark.parametrize("type", FILE_TYPES)
def test_bytes_are_stable(type: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fractions(tmp_path / "model")
    export_gguf(folder, tmp_path / "one.gguf", type=type, tokenizer=False)
    assert digest(tmp_path / "one.gguf") == PINNED[type]
    folder.rename(tmp_path / "elsewhere")
    stack_experts(tmp_path / "elsewhere", config_of())
    monkeypatch.setattr(indexshare.export.source, "CHUNK_BYTES", 512)  # a row or two at a time
    export_gguf(tmp_path / "elsewhere", tmp_path / "two.gguf", type=type, tokenizer=False)
    assert digest(tmp_path / "two.gguf") == PINNED[type]


def test_block_fp8_is_unpacked(tmp_path: Path) -> None:
    config = config_of()
    model = saved(tmp_path / "model", config)
    save_model(model, tmp_path / "fp8", quantization="fp8", dtype="bfloat16")
    export_gguf(tmp_path / "fp8", tmp_path / "out.gguf", tokenizer=False)
    export_gguf(tmp_path / "model", tmp_path / "plain.gguf", tokenizer=False)
    (_, unpacked), (_, plain) = read(tmp_path / "out.gguf"), read(tmp_path / "plain.gguf")
    assert unpacked.keys() == plain.keys()
    for name, values in plain.items():
        torch.testing.assert_close(unpacked[name], values, rtol=2**-4 + 2**-8, atol=float(values.abs().max()) * 2**-9)


def test_what_is_dropped_is_reported(tmp_path: Path) -> None:
    saved(tmp_path / "model", config_of())
    file = tmp_path / "model" / SINGLE_FILE
    tensors = load_file(file)
    tensors["model.layers.2.self_attn.indexer.wk.weight"] = torch.zeros(16, 32)
    tensors["model.layers.4.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file)
    report = export_gguf(tmp_path / "model", tmp_path / "out.gguf", tokenizer=False)
    assert set(report.dropped.values()) == {"indexer of a Shared layer", "repeats model.embed_tokens.weight"}
    tensors["model.layers.4.embed_tokens.weight"][0] += 1
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"layers\.4\.embed_tokens.* differs"):
        export_gguf(tmp_path / "model", tmp_path / "out.gguf", tokenizer=False)


def test_progress_and_notes(tmp_path: Path) -> None:
    saved(tmp_path / "model", config_of())
    seen: list[tuple[int, int]] = []
    report = export_gguf(
        tmp_path / "model", tmp_path / "out.gguf", tokenizer=False, progress=lambda *pair: seen.append(pair)
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({total for _, total in seen}) == 1
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1]
    assert [note.split()[0] for note in report.notes] == ["index", "llama.cpp"]


YARN = RopeParameters(rope_type="yarn", factor=4.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias is true"),
        ({"n_shared_experts": 0}, "n_shared_experts is 0"),
        ({"index_head_dim": 48}, "index_head_dim is 48, its indexer needs a power of two"),
        ({"mlp_layer_types": ("dense", "sparse", "dense", "sparse")}, "dense layer after layer 1"),
        ({"n_routed_experts": 1, "num_experts_per_tok": 1}, "n_routed_experts is 1"),
        ({"rope_parameters": YARN}, "rope_type is 'yarn'"),
        ({"model_type": "deepseek_v32"}, "layer 2 shares an index"),
        ({"model_type": "deepseek_v32", "indexer_types": ("full",) * 4, "rope_parameters": YARN}, "mscale is 0.0"),
        ({"attention_bias": True, "n_shared_experts": 0}, "n_shared_experts is 0.*; attention_bias is true"),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"llama.cpp cannot run this model: .*{message}"):
        architecture(config_of(**changes))


def test_deepseek_is_another_architecture() -> None:
    keys = hyperparameters(preset("deepseek-v3.2"))
    assert keys["deepseek32.expert_group_used_count"] == 4
    assert keys["deepseek32.rope.scaling.yarn_log_multiplier"] == 0.1
    assert not [name for name in keys if name.endswith("indexer.types")]


def test_a_bad_checkpoint_leaves_nothing_behind(tmp_path: Path) -> None:
    saved(tmp_path / "model", config_of())
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "model.gguf"
    target.write_text("GGUF: what was there")
    file = tmp_path / "model" / SINGLE_FILE
    tensors = load_file(file)
    good = tensors["model.norm.weight"].clone()
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"model\.norm\.weight.* holds NaN"):
        export_gguf(tmp_path / "model", target, tokenizer=False)
    del tensors["lm_head.weight"]
    tensors |= {"model.norm.weight": good, "model.norm.bias": good.clone()}
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"(?s)cannot export .*1 missing: lm_head\.weight.*1 unexpected: model\.norm"):
        export_gguf(tmp_path / "model", target, tokenizer=False)
    assert [entry.name for entry in target.parent.iterdir()] == ["model.gguf"]
    assert target.read_text() == "GGUF: what was there"


def test_bad_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="type is 'q4_0'; expected one of bf16, q8_0"):
        export_gguf("nano", tmp_path / "x.gguf", type="q4_0")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="is a directory; expected the name of a file"):
        export_gguf("nano", tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a device or a pipe, which the file would replace"):
        export_gguf("nano", tmp_path / "pipe")
    with pytest.raises(ValueError, match="does not exist; create it first"):
        export_gguf("nano", tmp_path / "no" / "x.gguf")
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.md is there and is a file of another kind, which would be lost"):
        export_gguf("nano", tmp_path / "notes.md")
    assert (tmp_path / "notes.md").read_text() == "mine"
    with pytest.raises(ValueError, match="no model 'nanno'"):
        export_gguf("nanno", tmp_path / "x.gguf")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="bytes needed, 1,000 free"):
        export_gguf("nano", tmp_path / "x.gguf")


def test_without_the_library_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"pip install 'gguf>=0\.19'"):
        export_gguf("nano", tmp_path / "x.gguf")
    assert list(tmp_path.iterdir()) == []
