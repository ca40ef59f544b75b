"""The tokenizer in a GGUF file: read back and applied as llama.cpp does, it gives the ids that ours gives."""

import json
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from indexshare import ModelConfig
from indexshare.config.shipped import model_directory
from indexshare.export.gguf import export_gguf
from indexshare.export.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED, read_vocabulary
from indexshare.text.tokenizer import Tokenizer, train_bpe
from tests.unit.export.cases import config_of, saved
from tests.unit.export.llama_graph import read

GLM = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp's patterns, as it spells them.
PATTERNS = {
    "glm4": (GLM,),
    "chatglm-bpe": (GLM,),
    "gpt-2": (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",),
    "ufakzeka": (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",),
}
TEXT = Path(sysconfig.get_path("stdlib"), "argparse.py").read_text(encoding="utf-8")[:60_000]


class LlamaTokenizer:
    """llama.cpp's procedure on a file's keys: cut out fixed tokens, the longest first, then words, then merges."""

    def __init__(self, keys: dict[str, Any]) -> None:
        tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
        self.fixed = [(tokens[i], i) for i, kind in enumerate(types) if kind == USER_DEFINED]
        self.fixed.sort(key=lambda pair: -len(pair[0].encode()))
        ids = {token: i for i, token in enumerate(tokens) if types[i] == NORMAL}
        merges = [tuple(pair.split(" ")) for pair in keys["tokenizer.ggml.merges"]]
        # A half or a product of a merge may be a fixed token, which no word that is left can hold.
        merges = [(one, two) for one, two in merges if {one, two, one + two} <= ids.keys()]
        pre = keys["tokenizer.ggml.pre"]
        self.rust = RustTokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=pre == "glm4"))
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS[pre]]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self.rust.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])

    def encode(self, text: str) -> list[int]:
        """Ids of a text in which names of control tokens are ordinary text."""
        parts: list[str | int] = [text]
        for fixed, token in self.fixed:
            cut: list[str | int] = []
            for part in parts:
                pieces = part.split(fixed) if isinstance(part, str) else [part]
                for number, piece in enumerate(pieces):
                    cut += [token] if number else []
                    cut += [piece] if piece != "" else []
            parts = cut
        found: list[int] = []
        for part in parts:
            found += [part] if isinstance(part, int) else self.rust.encode(part).ids
        return found


def agreement(one: list[int], other: list[int], size: int) -> float:
    """Share of the tokens of `one` that `other` has too, wherever they stand."""
    left, right = [0] * size, [0] * size
    for counts, ids in ((left, one), (right, other)):
        for i in ids:
            counts[i] += 1
    return sum(map(min, left, right)) / len(one)


def trained(folder: Path, pre: Any, *, ignore_merges: bool = False) -> Tokenizer:
    """A byte-level tokenizer with a rule of its own, saved with three special tokens, one of them printed."""
    rust = RustTokenizer(models.BPE(ignore_merges=ignore_merges))
    rust.pre_tokenizer = pre
    rust.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, show_progress=False,
        special_tokens=["<|endoftext|>", "[gMASK]", "<|user|>"],
    )  # fmt: skip
    rust.train_from_iterator([TEXT], trainer)
    rust.add_tokens(["<think>"])
    tokenizer = Tokenizer(rust)
    tokenizer.save(folder)
    return tokenizer


def split(*patterns: str) -> Any:
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def glm_config(**changes: Any) -> ModelConfig:
    return config_of(**({"vocab_size": 510, "eos_token_id": (0, 2), "bos_token_id": 3} | changes))


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(file.read_text(encoding="utf-8"))
    change(data)
    file.write_text(json.dumps(data), encoding="utf-8")


def test_the_shipped_tokenizer_nearly(tmp_path: Path) -> None:
    report = export_gguf("nano", tmp_path / "out.gguf")
    assert report.pre_tokenizer == "ufakzeka"
    assert "about one token in a thousand" in report.notes[-1]
    keys, ours = read(tmp_path / "out.gguf")[0], Tokenizer.load(model_directory("nano"))
    expected = ours.encode(TEXT, parse_special=False)
    found = LlamaTokenizer(keys).encode(TEXT)
    assert agreement(expected, found, ours.vocab_size) > 0.998
    # Indentations written as ordinary tokens would be far off.
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    originals = json.loads((model_directory("nano") / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    for token, i in originals.items():
        if types[i] == USER_DEFINED:
            tokens[i], types[i] = token, NORMAL
    assert agreement(expected, LlamaTokenizer(keys).encode(TEXT), ours.vocab_size) < 0.95


def test_the_shipped_tokenizer_exactly_where_the_rules_agree(tmp_path: Path) -> None:
    export_gguf("nano", tmp_path / "out.gguf")
    found, ours = LlamaTokenizer(read(tmp_path / "out.gguf")[0]), Tokenizer.load(model_directory("nano"))
    for text in (
        "def f(self, x):\n    if x == 10.5:\n        return self.y['it''s'][3]\n\n\nclass A:\n    pass\n",
        "x  =   1 # é 中文 😀\n\t\ty = '\\n'\r\n",
        "<|endoftext|> is text here\n",
    ):
        assert found.encode(text) == ours.encode(text, parse_special=False), text


def test_the_shipped_special_tokens(tmp_path: Path) -> None:
    export_gguf("nano", tmp_path / "out.gguf")
    keys, ours = read(tmp_path / "out.gguf")[0], Tokenizer.load(model_directory("nano"))
    kinds = keys["tokenizer.ggml.token_type"]
    assert {i for i, kind in enumerate(kinds) if kind == CONTROL} == set(ours.special_tokens.values())
    for use in ("bos", "eos", "padding"):
        assert keys[f"tokenizer.ggml.{use}_token_id"] == ours.id_of("<|endoftext|>")
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert (keys["tokenizer.ggml.add_bos_token"], keys["tokenizer.ggml.add_eos_token"]) == (False, False)
    assert "tokenizer.chat_template" not in keys


@pytest.mark.parametrize(
    ("name", "pre", "ignore_merges"),
    [
        ("glm4", split(GLM), True),
        ("chatglm-bpe", split(GLM), False),
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    ],
)
def test_listed_rules_give_the_same_ids(name: str, pre: Any, ignore_merges: bool, tmp_path: Path) -> None:
    ours = trained(tmp_path / "model", pre, ignore_merges=ignore_merges)
    saved(tmp_path / "model", glm_config())
    report = export_gguf(tmp_path / "model", tmp_path / "out.gguf")
    assert report.pre_tokenizer == name
    assert not [note for note in report.notes if "pre-tokenizer" in note]
    keys = read(tmp_path / "out.gguf")[0]
    sample = TEXT + " it's 12345 <think>x</think>  \n\n  é中文😀"
    assert LlamaTokenizer(keys).encode(sample) == ours.encode(sample, parse_special=False)
    kinds, tokens = keys["tokenizer.ggml.token_type"], keys["tokenizer.ggml.tokens"]
    assert [tokens[i] for i, kind in enumerate(kinds) if kind == USER_DEFINED] == ["<think>"]
    assert [tokens[i] for i, kind in enumerate(kinds) if kind == UNUSED] == [f"[PAD{i}]" for i in range(501, 510)]


def test_deepseek_rule_is_known(tmp_path: Path) -> None:
    signs = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    words = r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    trained(tmp_path, split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", signs + words))
    edit(tmp_path / "tokenizer.json", lambda data: data.update(normalizer={"type": "Sequence", "normalizers": []}))
    assert read_vocabulary(tmp_path, glm_config()).pre == "deepseek-v3"


def test_uses_of_tokens(tmp_path: Path) -> None:
    trained(tmp_path, split(GLM), ignore_merges=True)
    plain = read_vocabulary(tmp_path, glm_config(eos_token_id=(0, 2, 1), pad_token_id=0))
    # Token 3 is no special token: the configuration class's default, not a choice.
    assert plain.special == {"eos": 0, "eot": 2, "eom": 1, "bos": 1, "padding": 0}
    assert read_vocabulary(tmp_path, glm_config(bos_token_id=2)).special["bos"] == 2
    assert (plain.chat_template, plain.add_bos) == (None, False)
    named = [{"name": "tools", "template": "b"}, {"name": "default", "template": "a"}]
    edit(tmp_path / "tokenizer_config.json", lambda data: data.update(chat_template=named))
    assert read_vocabulary(tmp_path, glm_config()).chat_template == "a"
    (tmp_path / "chat_template.jinja").write_text("[gMASK]<sop>{{ x }}\n")
    full = read_vocabulary(tmp_path, glm_config()).metadata()
    assert full["tokenizer.chat_template"] == "[gMASK]<sop>{{ x }}\n"
    assert full["tokenizer.ggml.add_bos_token"] is False


def template(*names: str) -> dict[str, Any]:
    """A post-processor that puts tokens of `trained` around a text, the first ones before it, the last after it."""
    ids = {"<|endoftext|>": 0, "[gMASK]": 1, "<|user|>": 2}
    parts: list[dict[str, Any]] = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    parts[-1:-1] = [{"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in names}
    return {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": tokens}


def test_the_post_processor_says_what_begins_and_ends_a_text(tmp_path: Path) -> None:
    trained(tmp_path, split(GLM), ignore_merges=True)
    # As in transformers, which does not look at add_bos_token beside a tokenizer.json.
    edit(tmp_path / "tokenizer_config.json", lambda data: data.update(add_bos_token=False))
    edit(tmp_path / "tokenizer.json", lambda data: data.update(post_processor=template("<|user|>", "<|endoftext|>")))
    vocabulary = read_vocabulary(tmp_path, glm_config())
    assert (vocabulary.add_bos, vocabulary.special["bos"], vocabulary.add_eos, vocabulary.bare) == (True, 2, True, ())
    two = template("[gMASK]", "<|user|>", "<|endoftext|>")
    edit(tmp_path / "tokenizer.json", lambda data: data.update(post_processor=two))
    vocabulary = read_vocabulary(tmp_path, glm_config(eos_token_id=(2, 0)))
    assert (vocabulary.add_bos, vocabulary.add_eos) == (False, False)
    assert vocabulary.bare == ("[gMASK]", "<|user|>", "<|endoftext|>")


def test_ids_that_are_no_counts(tmp_path: Path) -> None:
    """Far ids and holes stand in the file where the tokenizer has them."""
    trained(tmp_path / "model", split(GLM), ignore_merges=True)

    def spread(data: dict[str, Any]) -> None:
        vocab = data["model"]["vocab"]
        data["model"]["vocab"] = {name: i if i < 400 else i + 4 for name, i in vocab.items()}
        data["added_tokens"][-1]["id"] = 509

    edit(tmp_path / "model" / "tokenizer.json", spread)
    ours = Tokenizer.load(tmp_path / "model")
    saved(tmp_path / "model", glm_config())
    export_gguf(tmp_path / "model", tmp_path / "out.gguf")
    keys = read(tmp_path / "out.gguf")[0]
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert (tokens[509], kinds[509], ours.encode("<think>")) == ("<think>", USER_DEFINED, [509])
    assert [i for i, kind in enumerate(kinds) if kind == UNUSED] == [400, 401, 402, 403, *range(504, 509)]
    assert LlamaTokenizer(keys).encode(TEXT) == ours.encode(TEXT, parse_special=False)


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda data: data.update(normalizer={"type": "NFC"}), {}, r"changes text \(NFC\)"),
        (lambda data: data.update(decoder={"type": "WordPiece", "prefix": "#", "cleanup": True}), {}, "byte-level BPE"),
        (lambda data: data["model"].update(merges=[]), {}, "has no merges"),
        (lambda data: data["model"].update(ignore_merges=False), {"vocab_size": 500}, "belongs to another model"),
        (lambda data: data["pre_tokenizer"]["pretokenizers"].pop(0), {}, "cuts text into words by a rule that is none"),
        (lambda data: None, {"eos_token_id": None}, "names no eos_token_id"),
        (lambda data: None, {"eos_token_id": (0, 1, 2, 3)}, "has a place for 3"),
        (lambda data: None, {"pad_token_id": 510}, "gives padding the id 510"),
    ],
)
def test_what_cannot_be_exported(change: Any, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    trained(tmp_path, split(GLM), ignore_merges=True)
    edit(tmp_path / "tokenizer.json", change)
    with pytest.raises(ValueError, match=message):
        read_vocabulary(tmp_path, glm_config(**config))


def test_no_tokenizer_is_an_error_that_names_the_way_around(tmp_path: Path) -> None:
    saved(tmp_path / "model", config_of())
    with pytest.raises(ValueError, match=r"no tokenizer\.json; .*--no-tokenizer"):
        export_gguf(tmp_path / "model", tmp_path / "out.gguf")


def test_only_indentations_are_fixed(tmp_path: Path) -> None:
    train_bpe(["a\u00a0\n\u00a0\nb\n    c\n\n"] * 50, 300).save(tmp_path)
    vocabulary = read_vocabulary(tmp_path, config_of(vocab_size=300))
    fixed = {vocabulary.tokens[i] for i, kind in enumerate(vocabulary.types) if kind == USER_DEFINED}
    assert "\n    " in fixed
    assert all(token.startswith("\n") and token.endswith(" ") for token in fixed)
    assert vocabulary.types[vocabulary.tokens.index("\u010a")] == NORMAL  # llama.cpp's line feed
