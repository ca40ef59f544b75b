"""Loading: every tensor used or named, whatever is wrong with the files."""

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from indexshare import load_model, save_model
from indexshare.checkpoint.load import LoadReport
from indexshare.checkpoint.names import checkpoint_tensors
from indexshare.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE, read_header
from indexshare.ops.quant import FP8, quantize_block_fp8
from tests.unit.checkpoint.checkpoints import (
    Tensors,
    assert_same_weights,
    change,
    random_model,
    saved,
    tiny_config,
    to_stacked,
)

Q_A = "model.layers.1.self_attn.q_a_proj.weight"
DRAFT = "model.layers.4."


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_loads_what_was_saved(tmp_path: Path) -> None:
    model, report = random_model(), LoadReport()
    loaded = load_model(saved(tmp_path / "m", model), report=report)
    assert_same_weights(model, loaded)
    assert loaded.config == model.config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert report.tensors == len(checkpoint_tensors(model.config))
    assert report.directory == tmp_path / "m"
    assert report.bytes_read == sum(t.nbytes for t in model.state_dict().values())
    assert (report.dropped, report.converted, report.dequantized) == ({}, {}, 0)
    ids = torch.randint(2, 200, (2, 30))
    with torch.no_grad():
        assert torch.equal(model(ids), loaded(ids))


def test_loading_and_running_leave_the_compiler_of_torch_alone(tmp_path: Path) -> None:
    """It takes longer to import than a small model takes to load."""
    program = (
        "import sys, torch, indexshare; model = indexshare.load_model(sys.argv[1]); "
        "model.eval()(torch.tensor([[3, 4, 5]])); print('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(saved(tmp_path / "m", random_model()))]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stdout == "False\n", result.stderr


def test_stacked_experts(tmp_path: Path) -> None:
    model = random_model()
    folder = saved(tmp_path / "m", model)
    change(folder, lambda tensors: to_stacked(tensors, model.config))
    assert not any(".experts.0." in name for name in load_file(folder / SINGLE_FILE))
    assert_same_weights(model, load_model(folder))


def test_both_forms_of_one_expert_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    config = tiny_config()

    def add_stacked(tensors: Tensors) -> None:
        kept = dict(tensors)
        to_stacked(tensors, config)
        tensors.update(kept)

    change(folder, add_stacked)
    with pytest.raises(ValueError, match=r"48 unexpected: model\.layers\.1\.mlp\.experts\.0\.down_proj"):
        load_model(folder)


def rename(old: str, new: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def put(name: str, tensor: torch.Tensor) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: tensor})


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda t: t.pop("model.norm.weight"), r"1 missing: model\.norm\.weight"),
        (put("model.extra.weight", torch.ones(2)), r"1 unexpected: model\.extra\.weight"),
        (rename(Q_A, Q_A.replace("q_a_proj", "q_a_prj")), r"q_a_prj\.weight \(did you mean " + Q_A),
        (put(Q_A, torch.ones(24, 31)), rf"1 wrong: {Q_A} has shape \[24, 31\], expected \[24, 32\]"),
        (put(Q_A, torch.ones(24, 32, dtype=torch.int32)), rf"{Q_A} is torch\.int32, expected floating point"),
        (put(Q_A, torch.ones(24, 32).to(FP8)), rf"{Q_A} is FP8 but {Q_A}_scale_inv is missing"),
        (put(Q_A + "_scale_inv", torch.ones(1, 1)), rf"{Q_A} is torch\.float32 but has a scale"),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith(DRAFT)],
            "belongs to the draft layer: load the trunk alone with config_overrides",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, edit: Callable[[Tensors], object], text: str) -> None:
    folder = saved(tmp_path / "m")
    change(folder, edit)
    with pytest.raises(ValueError, match=text) as error:
        load_model(folder)
    assert str(folder) in str(error.value)


def test_long_lists_of_problems_are_cut(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    change(folder, lambda t: [t.pop(name) for name in list(t) if ".mlp.experts." in name])
    with pytest.raises(ValueError, match=r"48 missing: .* and 40 more"):
        load_model(folder)


def test_trunk_without_its_draft_layer(tmp_path: Path) -> None:
    model, report = random_model(), LoadReport()
    folder = saved(tmp_path / "m", model)
    trunk = load_model(folder, config_overrides={"num_nextn_predict_layers": 0}, report=report)
    assert trunk.mtp is None
    assert set(report.dropped.values()) == {"draft layer switched off"}
    assert all(name.startswith(DRAFT) for name in report.dropped)
    ids = torch.randint(2, 200, (1, 20))
    with torch.no_grad():
        assert torch.equal(model(ids), trunk(ids))


def test_draft_layer_that_the_configuration_denies(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    edit_config(folder, num_nextn_predict_layers=0)
    with pytest.raises(ValueError, match="num_nextn_predict_layers should be 1"):
        load_model(folder)


def test_surplus_indexers_are_reported_and_dropped(tmp_path: Path) -> None:
    model, report = random_model(), LoadReport()
    folder = saved(tmp_path / "m", model)
    plan = ["full", "full", "shared", "shared"]
    with pytest.warns(UserWarning, match="dropped 5 indexer tensors of Shared layers"):
        loaded = load_model(folder, config_overrides={"indexer_types": plan}, report=report)
    assert loaded.layers[3].self_attn.indexer is None
    assert len(report.dropped) == 5
    assert set(report.dropped.values()) == {"indexer of a Shared layer"}
    # A missing indexer cannot be made up.
    with pytest.raises(ValueError, match=r"5 missing: model\.layers\.2\.self_attn\.indexer"):
        load_model(folder, config_overrides={"indexer_types": ["full"] * 4})


def test_computed_frequencies_are_ignored(tmp_path: Path) -> None:
    model, report = random_model(), LoadReport()
    folder = saved(tmp_path / "m", model)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change(folder, put(name, torch.ones(4)))
    assert_same_weights(model, load_model(folder, report=report))
    assert report.dropped == {name: "computed, not stored"}


@pytest.mark.parametrize(
    ("private", "twin"),
    [("shared_head.head.weight", "lm_head.weight"), ("embed_tokens.weight", "model.embed_tokens.weight")],
)
def test_copies_in_the_draft_layer_must_equal_the_trunk(tmp_path: Path, private: str, twin: str) -> None:
    model, report = random_model(), LoadReport()
    folder = saved(tmp_path / "m", model)
    change(folder, lambda t: t.update({DRAFT + private: t[twin].clone()}))
    assert_same_weights(model, load_model(folder, report=report))
    assert report.dropped == {DRAFT + private: f"repeats {twin}"}
    change(folder, lambda t: t[DRAFT + private][0].add_(1))
    with pytest.raises(ValueError, match=rf"{private}' differs from '{twin}'"):
        load_model(folder)


def test_tied_embeddings(tmp_path: Path) -> None:
    model = random_model(tiny_config(tie_word_embeddings=True))
    folder = saved(tmp_path / "m", model)
    assert "lm_head.weight" not in read_header(folder / SINGLE_FILE)
    loaded = load_model(folder)
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    assert_same_weights(model, loaded)
    change(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert_same_weights(model, load_model(folder))
    change(folder, put("lm_head.weight", torch.ones(256, 32)))
    with pytest.raises(ValueError, match="differs from"):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    folder = saved(tmp_path / "m")
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    change(folder, lambda t: t[name].view(-1)[-1:].fill_(value))
    with pytest.raises(ValueError, match=rf"'{name}' in .*{SINGLE_FILE} holds NaN or an infinity"):
        load_model(folder)
    loaded = load_model(folder, check_finite=False)
    assert not loaded.layers[2].mlp.experts.gate_up_proj.isfinite().all()


@pytest.mark.parametrize("kind", ["bfloat16", torch.bfloat16, "float64", "float16"])
def test_types(tmp_path: Path, kind: str | torch.dtype) -> None:
    model, report = random_model(), LoadReport()
    loaded = load_model(saved(tmp_path / "m", model), dtype=kind, report=report)
    name = str(kind).removeprefix("torch.")
    assert loaded.config.dtype == name
    for key, tensor in loaded.state_dict().items():
        is_bias = key.endswith("e_score_correction_bias")
        assert tensor.dtype == (torch.float32 if is_bias else getattr(torch, name))
        assert torch.equal(tensor, model.state_dict()[key].to(tensor.dtype))
    assert report.converted == {f"float32 -> {name}": report.tensors - 4}  # four layers' biases stay


def test_unusable_types(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    for kind in ("int8", torch.int8, "half"):
        with pytest.raises(ValueError, match="expected one of float64, float32, bfloat16, float16"):
            load_model(folder, dtype=kind)


def test_names_and_configurations_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model 'nanno'"):
        load_model("nanno")
    with pytest.raises(ValueError, match=r"no config\.json"):
        load_model(tmp_path)
    folder = saved(tmp_path / "m")
    with pytest.raises(ValueError, match="'index_top' in config_overrides; did you mean 'index_topk'"):
        load_model(folder, config_overrides={"index_top": 4})
    edit_config(folder, indx_topk=4)
    with pytest.raises(ValueError, match=r"indx_topk.*did you mean"):
        load_model(folder)
    (folder / "config.json").write_text('{"model_type": "gptj"}')
    with pytest.raises(ValueError, match="model_type is 'gptj'"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_model(folder)


def write_header(file: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "text"),
    [
        (b"not json", b"", "header of .* is damaged"),
        ([1], b"", "expected a JSON object"),
        ({"a": 3}, b"", "'a' lacks dtype, shape or data_offsets"),
        ({"a": entry([2], 0, 8, "F99")}, b"x" * 8, "dtype 'F99'"),
        ({"a": entry([2], 0, 8, [])}, b"x" * 8, "dtype"),  # type: ignore[arg-type]
        ({"a": entry([-2], 0, 8)}, b"x" * 8, "expected lists of sizes"),
        ({"a": entry([3], 0, 8)}, b"x" * 8, r"F32 \[3\] takes 12 bytes"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, b"x" * 12, "'b' starts at byte"),
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, b"x" * 20, "'b' starts at byte"),
        ({"a": entry([2], 0, 8)}, b"x" * 7, "is truncated"),
        ({"a": entry([2], 0, 8)}, b"x" * 9, "is too long"),
        (b'{"a":' + json.dumps(entry([1], 0, 4)).encode() + b',"a":{}}', b"x" * 4, "'a' appears twice"),
        (b"[" * 100_000, b"", "is damaged"),
    ],
)
def test_damaged_files(tmp_path: Path, header: object, data: bytes, text: str) -> None:
    file = tmp_path / "x.safetensors"
    write_header(file, header, data)
    with pytest.raises(ValueError, match=text):
        read_header(file)


def test_truncated_files(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    whole = (folder / SINGLE_FILE).read_bytes()
    for size in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / SINGLE_FILE).write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"{SINGLE_FILE} is truncated"):
            load_model(folder)
    write_header(folder / SINGLE_FILE, {}, length=2**63)
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        load_model(folder)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A checkpoint in several files."""
    save_model(random_model(), tmp_path / "m", max_shard_bytes=100_000)
    assert len(list((tmp_path / "m").glob("model-*-of-*.safetensors"))) > 3
    return tmp_path / "m"


def edit_index(folder: Path, edit: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    edit(index["weight_map"])
    (folder / INDEX_FILE).write_text(json.dumps(index))


def test_shards(sharded: Path) -> None:
    assert_same_weights(random_model(), load_model(sharded))


def test_shards_that_disagree_with_their_index(sharded: Path) -> None:
    first, second = sorted(p.name for p in sharded.glob("model-0000[12]-of-*"))
    inside = next(iter(read_header(sharded / first)))
    index = (sharded / INDEX_FILE).read_text()

    def refused(edit: Callable[[dict[str, str]], object], text: str) -> None:
        edit_index(sharded, edit)
        with pytest.raises(ValueError, match=text):
            load_model(sharded)
        (sharded / INDEX_FILE).write_text(index)

    refused(lambda m: m.update({inside: "gone.safetensors"}), r"1 of \d+ shards that do not exist: gone")
    refused(lambda m: m.pop(inside), rf"'{inside}' is in {first}, but .* does not list it")
    refused(lambda m: m.update({inside: second}), rf"'{inside}' is in {first}, but .* places it in {second}")
    refused(lambda m: m.update({"ghost": first}), f"places 'ghost' in {first}, which does not hold it")
    refused(lambda m: m.update({inside: "../x.safetensors"}), "expected a file name in the same directory")
    tensors = load_file(sharded / second)
    save_file(tensors | {inside: torch.ones(1)}, sharded / second)
    with pytest.raises(ValueError, match=rf"'{inside}' is both in {first} and in {second}"):
        load_model(sharded)
    (sharded / first).unlink()
    with pytest.raises(ValueError, match=rf"1 of \d+ shards that do not exist: {first}"):
        load_model(sharded)


def test_competing_or_absent_weights(sharded: Path) -> None:
    save_file({"a": torch.ones(1)}, sharded / SINGLE_FILE)
    with pytest.raises(ValueError, match=r"has both .*delete the one out of date"):
        load_model(sharded)
    (sharded / SINGLE_FILE).unlink()
    (sharded / INDEX_FILE).write_text("{}")
    with pytest.raises(ValueError, match="no weight_map"):
        load_model(sharded)
    (sharded / INDEX_FILE).unlink()
    with pytest.raises(ValueError, match=rf"neither {SINGLE_FILE} nor {INDEX_FILE}; it holds model-00001"):
        load_model(sharded)


def test_any_tensor_may_be_fp8_if_it_has_a_scale(tmp_path: Path) -> None:
    """What decides is the scale beside the tensor, whatever lists the configuration has."""
    model, report = random_model(), LoadReport()
    folder = saved(tmp_path / "m", model)
    name = "model.layers.0.self_attn.indexer.weights_proj.weight"

    def quantize(tensors: Tensors) -> None:
        tensors[name], tensors[name + "_scale_inv"] = quantize_block_fp8(tensors[name])

    change(folder, quantize)
    loaded = load_model(folder, report=report)
    assert report.dequantized == 1
    ours = "layers.0.self_attn.indexer.weights_proj.weight"
    error = (loaded.get_parameter(ours) - model.get_parameter(ours)).abs().max()
    assert 0 < error < 0.3
    change(folder, put(name + "_scale_inv", torch.ones(2, 1)))
    with pytest.raises(ValueError, match=r"weights_proj.weight_scale_inv is .* expected float32 \[1, 1\]"):
        load_model(folder)
    change(folder, put(name + "_scale_inv", torch.full((1, 1), float("nan"))))
    with pytest.raises(ValueError, match=r"weights_proj\.weight_scale_inv' in .* holds NaN"):
        load_model(folder)


def test_stacked_fp8_experts_and_odd_blocks(tmp_path: Path) -> None:
    model = random_model()
    folder = saved(tmp_path / "m", model)
    name = "model.layers.1.mlp.experts.gate_up_proj"

    def quantize(tensors: Tensors) -> None:
        to_stacked(tensors, model.config)
        tensors[name], tensors[name + "_scale_inv"] = quantize_block_fp8(tensors[name], block=(8, 16))

    change(folder, quantize)
    edit_config(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [8, 16]})
    loaded = load_model(folder)
    assert loaded.config.quantization_config is None
    exact, got = (m.layers[1].mlp.experts.gate_up_proj for m in (model, loaded))
    assert (exact - got).abs().max() < exact.abs().max() / 15


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "nvfp4"},
        {"quant_method": "fp8", "fmt": "e5m2"},
        {"quant_method": "fp8", "weight_block_size": [128]},
    ],
)
def test_other_quantizations_are_refused(tmp_path: Path, quantization: dict[str, object]) -> None:
    folder = saved(tmp_path / "m")
    edit_config(folder, quantization_config=quantization)
    with pytest.raises(ValueError, match=r"not implemented|expected two positive sizes"):
        load_model(folder)


MEASURE = """
import sys, torch
from indexshare import load_model
torch.set_num_threads(1)
load_model(sys.argv[2])  # a tiny model first: imports and thread pools are not what is measured
def memory(field):  # not ru_maxrss, which starts at what the parent process had
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(field))
before = memory("VmRSS:")
model = load_model(sys.argv[1], dtype=sys.argv[3])
print(memory("VmHWM:") - before, sum(p.nbytes for p in model.state_dict().values()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_peak_memory_is_close_to_the_size_of_the_model(tmp_path: Path, kind: str) -> None:
    big = tiny_config(
        vocab_size=32768, hidden_size=512, intermediate_size=2048, moe_intermediate_size=512,
        n_routed_experts=32, num_attention_heads=8, dtype="bfloat16",
    )  # fmt: skip
    saved(tmp_path / "tiny")
    with torch.device("meta"):
        model = type(random_model())(big)
    model = model.bfloat16().to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.zero_()
    save_model(model, tmp_path / "big")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "big"), str(tmp_path / "tiny"), kind]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
    growth, size = map(int, result.stdout.split())
    assert size > 280e6
    assert growth <= 1.25 * size, f"{growth / size:.2f} times the model"
