"""Twenty thousand damaged files of each kind: a clear line that names the file, or what an independent reader finds.

Another exception, a hang or another result than the file's is a fault. Each mutation has a number and is the same in
every run; the fast share reads the first few hundred.
"""

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import save
from tokenizers import Tokenizer as RustTokenizer

from indexshare import load_model, save_model
from indexshare.checkpoint.companions import as_json
from indexshare.checkpoint.tensor_files import DTYPES, INDEX_FILE, TensorReader, read_directory, read_header
from indexshare.config import ModelConfig, preset
from indexshare.config.generation import GenerationDefaults
from indexshare.engine.params import SamplingParams
from indexshare.text.tokenizer import Tokenizer
from indexshare.text.tokenizer_file import byte_of_character
from indexshare.verify.forward import PlainForward
from tests.property.mutations import deadline, mutated, read_or_refused
from tests.tolerance import TOL
from tests.unit.text.foreign import SAMPLE, byte_level, flags, llama, metaspace
from tests.unit.verify.conftest import small_model

Check = Callable[[bytes], bool]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: the files are written twenty thousand times."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def few_or(many: int) -> Any:
    """A short run in the fast suite, the whole one in the slow suite."""
    return pytest.mark.parametrize("count", [min(300, many), pytest.param(many, marks=pytest.mark.slow)])


def run(name: str, count: int, texts: list[str], check: Check, names: tuple[str, ...] = ()) -> dict[str, int]:
    """Mutate, check, and count what was accepted and what refused; `check` says whether it was accepted."""
    found = {"accepted": 0, "refused": 0}
    for number in range(count):
        rng = random.Random(f"{name} {number}")
        content = mutated(rng.choice(texts), rng, names)
        try:
            accepted = check(content)
        except BaseException as error:
            error.add_note(f"{name}, mutation {number}: {content[:3000]!r}")
            raise
        found["accepted" if accepted else "refused"] += 1
    assert found["accepted"] > count / 100 and found["refused"] > count / 10, found
    return found


# config.json


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 1.0}
CONFIG_KEYS = (
    "rope_scaling", "rope_theta", "torch_dtype", "num_experts", "num_local_experts", "first_k_dense_replace", "factor",
    "index_topk_pattern", "index_topk_freq", "index_skip_topk_offset", "partial_rotary_factor", "truncate",
    "layer_types", "hidden_size", "num_hidden_layers", "n_group", "attention", "selection", "indexshare", "head_dim",
)  # fmt: skip


def configs() -> list[str]:
    """Files in the spellings of several years."""
    plain = preset("tiny").to_dict()
    old = {key: value for key, value in plain.items() if key not in ("rope_parameters", "mlp_layer_types", "dtype")} | {
        "model_type": "deepseek_v32", "rope_theta": 1e4, "rope_scaling": YARN, "torch_dtype": "float16",
        "indexer_types": ["full"] * 6, "first_k_dense_replace": 2, "eos_token_id": [1, 2], "temperature": 0.6,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }  # fmt: skip
    schedule = {key: value for key, value in plain.items() if key != "indexer_types"} | {
        "index_topk_freq": 2, "index_skip_topk_offset": 1, "rope_parameters": YARN | {"rope_theta": 1e4},
        "indexshare": {"attention": {"kind": "mla"}, "selection": {"kind": "content"}}, "sliding_window": None,
    }  # fmt: skip
    return [json.dumps(data) for data in (plain, old, schedule, schedule | {"index_topk_pattern": "FSFSFS"})]


DEEPSEEK = {
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
    "num_attention_heads": 128, "q_lora_rank": 1536, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 8,
    "topk_group": 4, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "index_n_heads": 64,
    "indexer_rope_interleave": False,
}  # fmt: skip


def plain_fields(data: dict[str, Any]) -> dict[str, Any]:
    """What the keys that are fields say, defaults included; lists as tuples."""
    special = ("extra", "variant", "rope_parameters", "indexer_types", "mlp_layer_types", "dtype", "n_routed_experts")
    fields = {name: item.default for name, item in ModelConfig.__dataclass_fields__.items() if name not in special}
    fields |= {key: value for key, value in DEEPSEEK.items() if data["model_type"] == "deepseek_v32"}
    fields |= {name: data[name] for name in fields if data.get(name) is not None}
    fields |= {key: data[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in data}
    kinds = ModelConfig.__annotations__
    fields = {name: float(value) if kinds[name] == "float" else value for name, value in fields.items()}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def layer_kinds(data: dict[str, Any], layers: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Kinds of indexers and of MLPs, from the first spelling that is there."""
    pattern, freq = data.get("index_topk_pattern"), data.get("index_topk_freq")
    indexers = data.get("indexer_types")
    if indexers is None and pattern is not None:
        indexers = [{"F": "full", "S": "shared"}.get(kind, kind) for kind in pattern]
    if indexers is None and freq is not None:
        skip = 2 if data.get("index_skip_topk_offset") is None else data["index_skip_topk_offset"]
        indexers = ["shared" if max(i - skip + 1, 0) % max(freq, 1) else "full" for i in range(layers)]
    mlps = data.get("mlp_layer_types")
    if mlps is None:
        first = data.get("first_k_dense_replace", 3)
        mlps = ["dense" if layer < first else "sparse" for layer in range(layers)]
    return tuple(indexers or ["full"] * layers), tuple(mlps)


def rotary(data: dict[str, Any], context: int) -> dict[str, Any]:
    """The rotary settings that count: those of a scaling, wherever it stands, over a plain base."""
    places = [data.get("rope_parameters") or {}, data.get("rope_scaling") or {}]
    kinds = [place.get("rope_type") or place.get("type") or "default" for place in places]
    settings = places[1] if kinds[1] != "default" or not places[0] else places[0]
    bases = [place.get("rope_theta") for place in (*places, data)]
    said = {key: value for key, value in settings.items() if value is not None}
    said["rope_theta"] = next(base for base in bases if base is not None)
    if "yarn" in (said.get("rope_type"), said.get("type")):
        said = {"original_max_position_embeddings": context, "rope_type": "yarn"} | said
    return {key: value for key, value in said.items() if key not in ("type", "partial_rotary_factor", "truncate")}


def same_configuration(config: ModelConfig, data: dict[str, Any]) -> None:
    """Everything that was read is what the file says, of the field's type, and stays when it is saved."""
    expected = plain_fields(data)
    assert {name: getattr(config, name) for name in expected} == expected
    assert (config.indexer_types, config.mlp_layer_types) == layer_kinds(data, config.num_hidden_layers)
    assert config.dtype == (data.get("dtype") or data.get("torch_dtype") or "bfloat16")
    experts = [data.get(key) for key in ("n_routed_experts", "num_experts", "num_local_experts")]
    assert config.n_routed_experts == next((count for count in experts if count is not None), 256)
    said = rotary(data, config.max_position_embeddings)
    assert {name: getattr(config.rope_parameters, name) for name in said} == said
    assert all(type(value) is int for name, value in vars(config).items() if ModelConfig.__annotations__[name] == "int")
    written = json.loads(as_json(config.to_dict()))
    again = ModelConfig.from_dict(written)
    assert repr(again) == repr(config.replace(extra=again.extra))  # equal, NaN in what is carried along too
    kept = {
        key: value for key, value in data.items() if key in config.extra and key in written and key != "architectures"
    }
    assert repr({key: written[key] for key in kept}) == repr(kept)


@few_or(20_000)
def test_configurations(count: int, folder: Path) -> None:
    file = folder / "config.json"

    def check(content: bytes) -> bool:
        file.write_bytes(content)
        config = read_or_refused(lambda: ModelConfig.load(folder), "config.json")
        if config is not None:
            same_configuration(config, json.loads(content.decode("utf-8")))
            config.rope_parameters.inverse_frequencies(config.qk_rope_head_dim % 512)
        return config is not None

    print(run("config", count, configs(), check, CONFIG_KEYS))


# generation_config.json


GENERATION = {
    "eos_token_id": [1, 2], "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.05,
    "repetition_penalty": 1.1, "max_new_tokens": 64, "stop_strings": ["END"], "num_beams": 1, "length_penalty": 1.0,
    "transformers_version": "5.0.0", "bad_words_ids": [[5]],
}  # fmt: skip


@few_or(4_000)
def test_generation_files(count: int, folder: Path) -> None:
    file = folder / "generation_config.json"
    plain = ("do_sample", "temperature", "top_p", "min_p", "repetition_penalty", "max_new_tokens")

    def check(content: bytes) -> bool:
        file.write_bytes(content)
        found = read_or_refused(lambda: GenerationDefaults.load(folder), "generation_config.json")
        if found is None:
            return False
        data = json.loads(content)
        assert {key: getattr(found, key) for key in plain} == {key: data.get(key) for key in plain}
        top_k, ids, texts = (data.get(key) for key in ("top_k", "eos_token_id", "stop_strings"))
        assert found.top_k == (None if top_k is None else max(top_k, 0))
        assert found.eos_token_ids == (None if ids is None else tuple(ids if isinstance(ids, list) else [ids]))
        assert found.stop_strings == tuple([texts] if isinstance(texts, str) else texts or ())
        assert all("\n" not in said for said in found.not_implemented)
        SamplingParams(**found.sampling())
        return True

    print(run("generation", count, [json.dumps(GENERATION), json.dumps({"eos_token_id": 3})], check, tuple(GENERATION)))


# Tokenizers


PROBES = (SAMPLE[:120], "", "  a\n\tb", "<|user|>x</s> <s>", "é日🙂\u200d ▁ <0x41>", "def def", "a<x> <far>b")


def slim(data: dict[str, Any]) -> None:
    """Keep the entries that the probes need: a small vocabulary is read faster."""
    signs = {sign for sign, byte in byte_of_character().items() if byte in "".join(PROBES).encode("utf-8")}
    needed = {f"<0x{byte:02X}>" for byte in "".join(PROBES).encode("utf-8")} | signs | {"<|endoftext|>", "<|user|>"}
    model = data["model"]
    model["vocab"] = {
        name: i for name, i in model["vocab"].items() if i < 3 or name in needed or set(name) <= {*signs, "▁"}
    }
    model["vocab"] = {name: i for i, name in enumerate(model["vocab"])}
    whole = model["vocab"].keys()
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= whole]


def tokenizer_texts(folder: Path) -> list[str]:
    """`tokenizer.json` of both kinds, with normalizers, settings of a use, and tokens far away."""
    far = [flags(id=900, content="<far>"), flags(id=700, content="<x>", special=False, lstrip=True)]
    state = {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}}
    files = [
        byte_level(folder / "a", slim),
        byte_level(folder / "b", lambda data: slim(data) or data["added_tokens"].extend(far) or data.update(state)),
        llama(folder / "c", slim),
        llama(folder / "d", lambda data: slim(data) or metaspace(data)),
    ]
    return [(file / "tokenizer.json").read_text() for file in files]


def same_tokens(ours: Tokenizer, data: dict[str, Any]) -> None:
    """Our ids name the tokens that the `tokenizers` library finds, and give its text or the very text."""
    clean = data | {"truncation": None, "padding": None, "model": data["model"] | {"dropout": None}}
    ids = {entry["content"]: entry["id"] for entry in data.get("added_tokens", ())}
    ids = data["model"]["vocab"] | ids
    assert ours.entries == ids
    names = {i: name for name, i in ids.items()}
    theirs = RustTokenizer.from_str(json.dumps(clean))
    if not all(name == theirs.id_to_token(i) for name, i in ids.items()):
        theirs = ours.rust  # the library gives one id to two of the file's tokens
    for probe in PROBES:
        found, expected = ours.encode(probe), theirs.encode(probe, add_special_tokens=False)
        assert [names[i] for i in found] == [theirs.id_to_token(i) for i in expected.ids]
        text = ours.decode(found)
        assert text in (probe, theirs.decode(expected.ids, skip_special_tokens=False)), probe
        assert ours.encode_prompt(probe)[len(ours.around[0]) :][: len(found)] == found


@few_or(12_000)
def test_tokenizer_files(count: int, folder: Path) -> None:
    texts = tokenizer_texts(folder)
    file = folder / "tokenizer.json"

    def check(content: bytes) -> bool:
        file.write_bytes(content)
        found = read_or_refused(lambda: Tokenizer.load(folder), "tokenizer")
        if found is not None:
            with deadline():
                same_tokens(found, json.loads(content))
        return found is not None

    keys = ("model", "merges", "normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "unk_token")
    print(run("tokenizer", count, texts, check, keys))


SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>",
    "pad_token": {"content": "<|endoftext|>"},
    "additional_special_tokens": ["<|user|>"], "model_max_length": 10**30,
    "added_tokens_decoder": {"0": flags(content="<|endoftext|>"), "1": flags(content="<|user|>", special=False)},
}  # fmt: skip


@few_or(4_000)
def test_files_beside_the_tokenizer(count: int, folder: Path) -> None:
    byte_level(folder, slim)
    vocabulary = Tokenizer.load(folder).entries
    older = json.dumps({"eos_token": "<|user|>", "unk_token": flags(content="<|endoftext|>")})
    files = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

    def check(content: bytes) -> bool:
        for name, text in zip(files, (b"{}", older.encode(), b'{"<|user|>": 1}'), strict=True):
            (folder / name).write_bytes(text)
        (folder / files[content.count(b"e") % 3]).write_bytes(content)
        found = read_or_refused(lambda: Tokenizer.load(folder), "token")
        if found is None:
            return False
        assert found.entries == vocabulary
        config, named, _ = (json.loads((folder / name).read_bytes()) for name in files)
        settings = config if config.get("added_tokens_decoder") is not None else config | named
        end = settings.get("eos_token") or "<|endoftext|>"
        assert found.eos_ids == (vocabulary[end["content"] if isinstance(end, dict) else end],)
        for probe in PROBES[:3]:
            assert found.decode(found.encode(probe)) == probe or b"strip" in content
        return True

    texts = [json.dumps(SETTINGS), json.dumps({"eos_token": "<|user|>"}), older, json.dumps({"<|user|>": 1})]
    print(run("beside", count, texts, check, ("eos_token", "added_tokens_decoder", "<|user|>", "unk_token")))


# Weights


def tensors() -> dict[str, torch.Tensor]:
    """A few tensors of every type, empty and without dimensions too."""
    torch.manual_seed(0)
    shapes = [(2, 3), (), (0, 4), (5,), (1, 2, 2)]
    return {f"t{i}": (torch.randn(shapes[i % 5]) * 9).to(dtype) for i, dtype in enumerate(DTYPES.values())}


def theirs_of(content: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of every tensor, as the `safetensors` library reads them."""
    return {
        name: (said["dtype"], said["shape"], bytes(said["data"])) for name, said in safetensors.deserialize(content)
    }


def same_bytes(file: Path, content: bytes) -> None:
    theirs, codes = theirs_of(content), {dtype: code for code, dtype in DTYPES.items()}
    ours = read_header(file)
    assert ours.keys() == theirs.keys()
    with TensorReader() as reader:
        for name, stored in ours.items():
            values = reader.read(stored)
            data = values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""
            assert (codes[stored.dtype], list(stored.shape), data) == theirs[name]


@few_or(20_000)
def test_headers_of_weights(count: int, folder: Path) -> None:
    whole = save(tensors(), {"format": "pt"})
    size = int.from_bytes(whole[:8], "little")
    header, data = whole[8 : 8 + size], whole[8 + size :]
    file = folder / "model.safetensors"

    def check(content: bytes) -> bool:
        rng = random.Random(content)
        said = len(content) + rng.choice([0] * 20 + [1, -1, 8, 2**40, -len(content)])
        rest = rng.choice([data] * 9 + [data[:-1], data + b"\0", b"", content])
        content = max(said, 0).to_bytes(8, "little") + content + rest
        content = content[: rng.choice([len(content)] * 30 + [0, 7, 8, 9])]
        file.write_bytes(content)
        found = read_or_refused(lambda: read_header(file), "model.safetensors")
        if found is not None:
            with deadline():
                same_bytes(file, content)
        return found is not None

    print(run("header", count, [header.decode()], check, ("t0", "t1", "data_offsets", "__metadata__")))


@few_or(2_000)
def test_indexes_of_shards(count: int, folder: Path) -> None:
    pieces = tensors()
    shards = [dict(list(pieces.items())[:5]), dict(list(pieces.items())[5:])]
    for number, shard in enumerate(shards):
        (folder / f"m{number}.safetensors").write_bytes(save(shard))
    places = {name: f"m{number}.safetensors" for number, shard in enumerate(shards) for name in shard}

    def check(content: bytes) -> bool:
        (folder / INDEX_FILE).write_bytes(content)
        found = read_or_refused(lambda: read_directory(folder), INDEX_FILE)
        if found is not None:
            assert {name: stored.file.name for name, stored in found.items()} == json.loads(content)["weight_map"]
        return found is not None

    text = json.dumps({"metadata": {"total_size": 99}, "weight_map": places})
    print(run("index", count, [text], check, ("t0", "weight_map", "m0.safetensors")))


# Whole models


@few_or(1_500)
def test_models(count: int, folder: Path) -> None:
    """A configuration that was read gives the logits of its formulas, or does not fit the weights, which is said."""
    save_model(small_model(2), folder)
    file, ids = folder / "config.json", torch.randint(2, 60, (1, 12))
    text = file.read_text()

    def check(content: bytes) -> bool:
        file.write_bytes(content)
        model = read_or_refused(lambda: load_model(folder, dtype="float32"), str(folder), lines=9)
        if model is None:
            return False
        with deadline(), torch.no_grad():
            some = ids[:, : model.config.max_position_embeddings]
            found, expected = model(some)[0], PlainForward(model.config, model.state_dict())(some[0]).logits
        if expected.isfinite().all():
            torch.testing.assert_close(found, expected, **TOL["public prefill logits", "float32"].bounds)
        return True

    keys = ("rope_scaling", "rope_theta", "num_experts", "torch_dtype", "index_topk_freq", "first_k_dense_replace")
    print(run("model", count, [text], check, keys))
