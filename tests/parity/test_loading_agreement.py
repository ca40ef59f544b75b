"""What a model's files say, read by us and by transformers: random variations of how they are spelled.

Each variation gives the same logits, ids that end a text, distribution or token ids, or is refused by us with a line
that names the setting. Differences on purpose are in docs/files.md and stay out, or are spelled out here.
"""

import functools
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.generation import LogitsProcessorList

from indexshare import GlmMoeDsa, ModelConfig, load_model
from indexshare.config.generation import GenerationDefaults
from indexshare.engine.params import SamplingParams
from indexshare.engine.sampler_reference import penalised, probabilities
from indexshare.text.tokenizer import Tokenizer
from tests.parity.harness import Case, Twins, build_public, clear_batch, deepseek_case, glm_case, transformers
from tests.tolerance import TOL
from tests.unit.text.foreign import SAMPLE, byte_level, flags, llama, metaspace, public

Settings = dict[str, Any]


def numbered(count: int, quick: int) -> Any:
    """Variations by number, of which the first few run in the fast suite."""
    return pytest.mark.parametrize(
        "seed", [pytest.param(i, marks=() if i < quick else pytest.mark.slow) for i in range(count)]
    )


# config.json


@functools.lru_cache(maxsize=4)
def base(kind: str) -> tuple[Path, Case]:
    """A folder with a random public model, to be copied."""
    case = {"glm": glm_case(3), "deepseek": deepseek_case(2)}[kind]
    folder = Path(tempfile.mkdtemp(prefix="agreement-"))
    build_public(case).save_pretrained(folder)
    return folder, case


@pytest.fixture(scope="module", autouse=True)
def _clean_up() -> Any:
    yield
    for kind in ("glm", "deepseek"):
        shutil.rmtree(base(kind)[0], ignore_errors=True)
    base.cache_clear()


def rotary(rng: random.Random) -> Settings:
    """Keys of config.json that set the rotary embedding, in one of their spellings."""
    base = rng.choice([1e4, 5e5, 8e6, 10000])
    word = rng.choice(["type", "rope_type"])
    plain: Settings = {"rope_theta": base, word: "default"}
    scaling: Settings = {word: "yarn", "factor": rng.choice([2.0, 4, 40.0])}
    for key, values in (
        ("original_max_position_embeddings", [16, 64]), ("beta_fast", [32, 16.0]), ("beta_slow", [1, 2.0]),
        ("mscale", [1.0, 0.5]), ("mscale_all_dim", [1.0, 0.707, 0]), ("attention_factor", [None, 0.8]),
        ("truncate", [True]), ("partial_rotary_factor", [1.0]),
    ):  # fmt: skip
        if rng.random() < 0.4:
            scaling[key] = rng.choice(values)
    return rng.choice(
        [
            {"rope_parameters": plain},
            {"rope_theta": base},
            {"rope_theta": base, "rope_scaling": None},
            {"rope_parameters": plain | {"partial_rotary_factor": 1.0}, "partial_rotary_factor": 1.0},
            {"rope_parameters": scaling | {"rope_theta": base}},
            {"rope_parameters": scaling | {"rope_theta": base}},
            {"rope_theta": base, "rope_scaling": scaling},
            {"rope_theta": base, "rope_scaling": scaling | {"rope_theta": base}},
            {"rope_theta": base, "rope_parameters": plain, "rope_scaling": scaling},
            {"rope_parameters": plain, "rope_scaling": scaling},
            {"rope_parameters": plain | {"partial_rotary_factor": 0.5}},
            {"rope_parameters": {word: "linear", "factor": 2.0, "rope_theta": base}},
        ]
    )


def layers(rng: random.Random, config: Settings) -> Settings:
    """Keys that say what kind the layers are, all saying the same."""
    kinds, mlps = config.get("indexer_types"), config["mlp_layer_types"]
    found: Settings = {"indexer_types": None, "mlp_layer_types": None, "first_k_dense_replace": mlps.count("dense")}
    if rng.random() < 0.5:
        found |= {"mlp_layer_types": mlps, "first_k_dense_replace": rng.randint(0, len(mlps))}
    if kinds is not None:
        letters = "".join("F" if kind == "full" else "S" for kind in kinds)
        found |= rng.choice(
            [{"indexer_types": kinds}, {"index_topk_pattern": letters}, {"index_topk_pattern": list(kinds)}]
        )
    return found


def variation(seed: int, kind: str) -> tuple[Settings, set[str]]:
    """A config.json, and the keys that were changed."""
    config = json.loads((base(kind)[0] / "config.json").read_text())
    rng = random.Random(f"{kind} {seed}")
    for key in ("rope_parameters", "indexer_types", "layer_types", "first_k_dense_replace"):
        config.pop(key, None) if key != "indexer_types" else None
    changes = rotary(rng) | layers(rng, config)
    experts, groups = config["n_routed_experts"], config["n_group"]
    for key, values in (
        ("rms_norm_eps", [1e-6, 1e-3, ...]), ("routed_scaling_factor", [1.0, 2.5, ...]),
        ("num_experts", [experts]),
        ("norm_topk_prob", [True, False, ...]), ("num_experts_per_tok", [1, 2]), ("index_topk", [3, 9, ...]),
        ("num_local_experts", [experts, experts, experts + 1]),
        ("topk_group", [1, groups]), ("scoring_func", ["sigmoid"]),
        ("bos_token_id", [None, 0, 5]), ("eos_token_id", [[1, 2], None, 3, ...]), ("pad_token_id", [None, 4]),
        ("max_position_embeddings", [512, 64]), ("head_dim", [7, ...]), ("hidden_act", ["silu", "gelu"]),
        ("sliding_window", [None]), ("attention_bias", [False, ...]),
        ("num_key_value_heads", [config["num_attention_heads"]]),
        ("dtype", ["float32", None, ...]), ("torch_dtype", ["float32"]), ("mlp_bias", [False]), ("temperature", [0.5]),
    ):  # fmt: skip
        if rng.random() < 0.3:
            changes[key] = rng.choice(values)
    config = {key: value for key, value in (config | changes).items() if value is not ...}
    if kind == "deepseek" and config["indexer_types" if "indexer_types" in config else "model_type"] is None:
        del config["indexer_types"]
    return config, set(changes)


@torch.no_grad()
def ours_and_theirs(config: Settings, kind: str, folder: Path) -> tuple[GlmMoeDsa | str, Any]:
    """Our model or the line that refuses it, and the public model or its error."""
    shutil.copytree(base(kind)[0], folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    ours: GlmMoeDsa | str
    theirs: Any
    try:
        ours = load_model(folder, dtype="float32")
    except ValueError as error:
        ours = str(error)
    try:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
    except Exception as error:  # whatever a library raises
        theirs = error
    return ours, theirs


@pytest.mark.parametrize("kind", ["glm", "deepseek"])
@numbered(30, quick=5)
def test_configurations(kind: str, seed: int, tmp_path: Path) -> None:
    config, changed = variation(seed, kind)
    ours, theirs = ours_and_theirs(config, kind, tmp_path)
    if isinstance(ours, str):
        assert any(key in ours for key in changed | {"rope_type", "factor"}), ours
        return
    assert not isinstance(theirs, Exception), f"refused by transformers alone: {theirs!r}"
    pair = Twins(Case(seed, base(kind)[1].sizes), theirs, ours)
    batch, expected = clear_batch(pair, "right")
    with torch.no_grad():
        found = ours(batch.ids)
    bounds = TOL["public prefill logits", "float32"].bounds
    for row, length in enumerate(batch.lengths):
        torch.testing.assert_close(found[row, :length], expected[row, :length], **bounds)
    said = theirs.config.eos_token_id
    assert ours.config.eos_token_ids == tuple([said] if isinstance(said, int) else said or ())


def test_most_variations_are_read() -> None:
    """What is refused is the exception: the comparison above is not empty."""
    refused = 0
    for kind in ("glm", "deepseek"):
        for seed in range(30):
            config, _ = variation(seed, kind)
            try:
                ModelConfig.from_dict(config)
            except ValueError:
                refused += 1
    assert 5 <= refused <= 35, refused


# generation_config.json


def said_of_generation(seed: int) -> Settings:
    """What a file may say: all of it optional."""
    rng = random.Random(f"generation {seed}")
    said: Settings = {}
    for key, values in (
        ("do_sample", [True, True, False, None]), ("temperature", [0.6, 1.0, 1, 2.0]), ("top_k", [1, 20, 0]),
        ("top_p", [0.5, 0.95, 1.0, 1]), ("min_p", [0.05, 0.2]), ("repetition_penalty", [1.0, 1.3]),
        ("eos_token_id", [3, [3], [3, 5], None]), ("bos_token_id", [0]), ("pad_token_id", [0, None]),
        ("max_new_tokens", [7]), ("transformers_version", ["4.40.0", "5.0.0"]), ("num_beams", [1]),
        ("length_penalty", [1.0]), ("_from_model_config", [True, False]),
    ):  # fmt: skip
        if rng.random() < 0.5:
            said[key] = rng.choice(values)
    return said


@numbered(24, quick=12)
def test_generation_files(seed: int, tmp_path: Path) -> None:
    """transformers' processors for the file and our sampler leave the same distribution."""
    said = said_of_generation(seed)
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    ours = GenerationDefaults.load(tmp_path)
    ids = theirs.eos_token_id
    assert (ours.eos_token_ids or ()) == tuple([ids] if isinstance(ids, int) else ids or ())
    assert ours.max_new_tokens == theirs.max_new_tokens
    params = SamplingParams(**({"temperature": 0.0} | ours.sampling()) if ours.samples is None else ours.sampling())
    if ours.samples and not said.get("do_sample"):
        return  # a temperature alone means sampling here
    generator = torch.Generator().manual_seed(seed)
    logits, prompt = torch.randn(1, 50, generator=generator) * 3, [4, 9, 9, 30]
    expected = theirs_distribution(theirs, logits, prompt, params)
    found = probabilities(penalised(logits[0].tolist(), params, prompt[:2], prompt[2:]), params)
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-6, rtol=1e-5)


def theirs_distribution(config: Any, logits: torch.Tensor, prompt: list[int], params: SamplingParams) -> torch.Tensor:
    """What transformers draws from; a `top_k` that is not said means all, as it does here."""
    config.update(
        **{
            key: value
            for key, value in config._get_default_generation_params().items()
            if getattr(config, key, 1) is None and key != "top_k"
        }
    )
    if config.top_k is None:
        config.top_k = 0
    model = public_shell()
    processors = model._get_logits_processor(config, input_ids_seq_length=4, encoder_input_ids=torch.tensor([prompt]))
    assert isinstance(processors, LogitsProcessorList)
    scores = processors(torch.tensor([prompt]), logits.clone())
    if not config.do_sample:
        return torch.nn.functional.one_hot(scores[0].argmax(), 50).float()
    return scores[0].softmax(-1)


@functools.lru_cache(maxsize=1)
def public_shell() -> Any:
    """Any public model: what it computes is not asked for."""
    return build_public(glm_case(3))


# Tokenizers


def beside(rng: random.Random, special: list[str]) -> Settings:
    """A tokenizer_config.json."""
    config: Settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": special[1]}
    for key, values in (
        ("pad_token", special), ("bos_token", special), ("clean_up_tokenization_spaces", [True, False]),
        ("additional_special_tokens", [special]), ("model_max_length", [5, 10**30]), ("padding_side", ["left"]),
        ("tokenizer_class", ["PreTrainedTokenizer", "TokenizersBackend"]), ("add_bos_token", [True, False]),
        ("eos_token", [{"content": special[1], "__type": "AddedToken", **flags()}]),
        ("add_prefix_space", [True, False]),
    ):  # fmt: skip
        if rng.random() < 0.35:
            config[key] = rng.choice(values)
    return config


def tokenizer_edit(rng: random.Random, kind: str) -> Any:
    """A function that changes a tokenizer.json of the kind, and the tokenizer_config.json to go with it."""
    special = ["<|endoftext|>", "<|user|>"] if kind == "byte" else ["<s>", "</s>"]
    ids = [0, 1] if kind == "byte" else [1, 2]
    truncation = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": special[0]}  # fmt: skip
    template = [{"SpecialToken": {"id": special[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    end = [{"SpecialToken": {"id": special[1], "type_id": 0}}]
    around = {
        "type": "TemplateProcessing", "pair": template,
        "single": rng.choice([template, template + end, template[1:]]),
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]}
            for name, i in zip(special, ids, strict=True)},
    }  # fmt: skip
    extra = [
        flags(
            content=name, id=0, special=rng.random() < 0.5, lstrip=rng.random() < 0.3, rstrip=rng.random() < 0.3,
            single_word=rng.random() < 0.3, normalized=rng.random() < 0.3,
        )
        for name in rng.sample(["<x>", "fd", " y", "<|far|>", "日本"], 3)
    ]  # fmt: skip
    for entry in extra:  # the library takes a special token that is normalised for another one when it leaves it out
        entry["normalized"] &= kind == "byte" or not entry["special"]
    config = beside(rng, special)

    def edit(data: Settings) -> None:
        start = max(data["model"]["vocab"].values()) + 1
        if rng.random() < 0.5:
            for number, entry in enumerate(extra):
                data["added_tokens"].append(entry | {"id": start + number})
        for key, values in (
            ("truncation", [truncation]), ("padding", [padding]), ("post_processor", [around, None, around]),
            ("version", ["1.0"]),
        ):  # fmt: skip
            if rng.random() < 0.5:
                data[key] = rng.choice(values)
        if kind == "byte":
            if rng.random() < 0.5:
                data["normalizer"] = rng.choice(
                    [{"type": "NFC"}, {"type": "Lowercase"},
                    {"type": "Replace", "pattern": {"String": "q"}, "content": "y"},
                     {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}, {"type": "Prepend", "prepend": "_"}]
                )  # fmt: skip
            if rng.random() < 0.4:
                data["pre_tokenizer"] = {
                    "type": "ByteLevel", "add_prefix_space": rng.random() < 0.5, "trim_offsets": True,
                    "use_regex": rng.random() < 0.5,
                }  # fmt: skip
        elif rng.random() < 0.5:
            metaspace(data)
        for key, values in (("ignore_merges", [True, False]), ("fuse_unk", [True, False]), ("dropout", [None, 0.0])):
            if rng.random() < 0.3:
                data["model"][key] = rng.choice(values)
        if rng.random() < 0.3:
            data["model"]["merges"] = [
                pair if isinstance(pair, str) else " ".join(pair) for pair in data["model"]["merges"]
            ]

    return edit, config


@numbered(40, quick=16)
def test_tokenizers(seed: int, tmp_path: Path) -> None:
    rng = random.Random(f"tokenizer {seed}")
    kind = ("byte", "llama")[seed % 2]
    edit, config = tokenizer_edit(rng, kind)
    folder = (byte_level if kind == "byte" else llama)(tmp_path, edit, config)
    ours, theirs = Tokenizer.load(folder), public(folder)
    assert ours.eos_ids == (theirs.eos_token_id,)
    for text in (
        SAMPLE,
        "",
        " a",
        "  a",
        "def <x> ef日本 y",
        "</s>  x <|user|>",
        "\n",
        "Cafe\u0301 日本語 🙂",
        "<|far|>x",
    ):
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
        ids = theirs(text)["input_ids"]
        assert ours.encode_prompt(text) == ids, text
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special=skip) == expected, text


@numbered(8, quick=4)
def test_tokens_far_away_are_the_same_tokens(seed: int, tmp_path: Path) -> None:
    """transformers gives such tokens other ids, so the names are compared; ours are the ids of the file."""
    rng = random.Random(f"far {seed}")
    names = rng.sample(["<x>", "<y>", " y", "<|far|>", "日本"], 3)
    ids = rng.sample(range(330, 900), 3)

    def edit(data: Settings) -> None:
        data["added_tokens"] += [
            flags(content=n, id=i, special=rng.random() < 0.5) for n, i in zip(names, ids, strict=True)
        ]

    folder = (byte_level if seed % 2 else llama)(tmp_path, edit)
    ours, theirs = Tokenizer.load(folder), public(folder)
    by_id = {i: name for name, i in ours.entries.items()}
    assert {name: ours.id_of(name) for name in names} == dict(zip(names, ids, strict=True))
    for text in (SAMPLE, "def <x> ef日本 y", "<|far|>x y"):
        expected = theirs(text)["input_ids"]
        assert [by_id[i] for i in ours.encode_prompt(text)] == theirs.convert_ids_to_tokens(expected)
