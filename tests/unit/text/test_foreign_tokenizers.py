"""Tokenizers that other programs wrote: the ids that transformers gives, ids of the file, or a clear line at load."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexshare.text.tokenizer import IncrementalDecoder, Tokenizer
from tests.unit.text.foreign import SAMPLE, Edit, byte_level, flags, llama, metaspace, public, write

TRUNCATION = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 512}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}  # fmt: skip


def edited(**changes: Any) -> Edit:
    return lambda data: data.update(changes)


def model(**changes: Any) -> Edit:
    return lambda data: data["model"].update(changes)


@pytest.mark.parametrize(
    "edit",
    [
        edited(),
        edited(truncation=TRUNCATION),
        edited(padding=PADDING),
        edited(truncation=TRUNCATION, padding=PADDING | {"strategy": "BatchLongest"}),
        edited(normalizer={"type": "NFC"}),
        edited(normalizer={"type": "Lowercase"}),
        edited(
            post_processor={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
        ),
        edited(post_processor={"type": "BertProcessing", "sep": ["<|user|>", 1], "cls": ["<|endoftext|>", 0]}),
        edited(added_tokens=[flags(id=0, content="<|endoftext|>"), flags(id=1, content="<|user|>", special=False)]),
        edited(added_tokens=[flags(id=0, content="<|endoftext|>"), flags(id=1, content="<|user|>", lstrip=True)]),
    ],
)
def test_ids_are_those_of_transformers(edit: Edit, tmp_path: Path) -> None:
    ours, theirs = Tokenizer.load(byte_level(tmp_path, edit)), public(tmp_path)
    for text in (SAMPLE, "", " a", "Cafe\u0301 CAFÉ", "<|user|>  x <|endoftext|>"):
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode_prompt(text) == theirs(text)["input_ids"]
    assert ours.vocab_size == len(theirs) == 312
    assert ours.eos_ids == (theirs.eos_token_id,)


def test_hidden_state_does_not_count(tmp_path: Path) -> None:
    plain = Tokenizer.load(byte_level(tmp_path / "plain"))
    changed = byte_level(
        tmp_path / "state", lambda d: d.update(truncation=TRUNCATION, padding=PADDING) or d["model"].update(dropout=0.9)
    )
    hidden = Tokenizer.load(changed)
    assert len(plain.encode(SAMPLE)) > 100
    assert all(hidden.encode(SAMPLE) == plain.encode(SAMPLE) for _ in range(5))
    assert hidden.encode_batch([SAMPLE, "x"]) == plain.encode_batch([SAMPLE, "x"])
    assert hidden.fingerprint == plain.fingerprint
    hidden.save(tmp_path / "again")  # what came in goes out
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (changed / "tokenizer.json").read_bytes()


def far(data: dict[str, Any]) -> None:
    data["added_tokens"] += [flags(id=400, content="<far>"), flags(id=350, content="<near>", special=False)]


def test_added_tokens_keep_their_ids(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(byte_level(tmp_path, far))
    ids = tokenizer.encode("a<far>b<near>")
    assert (ids[1], ids[3]) == (400, 350)
    assert tokenizer.decode(ids) == "a<far>b<near>"
    assert tokenizer.decode(ids, skip_special=True) == "ab<near>"
    assert (tokenizer.vocab_size, tokenizer.id_of("<far>")) == (401, 400)
    assert tokenizer.token_bytes(399) == b""  # a hole
    with pytest.raises(ValueError, match="token id 401 is out of range"):
        tokenizer.decode([401])
    assert tokenizer.fingerprint != Tokenizer.load(byte_level(tmp_path / "plain")).fingerprint


def holes(data: dict[str, Any]) -> None:
    """Base ids 0, 1, 12, 22, ...: the next free id is not the number of entries."""
    data["model"]["vocab"] = {name: i if i < 2 else 10 * i - 8 for name, i in data["model"]["vocab"].items()}
    data["added_tokens"].append(flags(id=5, content="<five>"))


def test_holes_in_the_vocabulary(tmp_path: Path) -> None:
    plain = Tokenizer.load(byte_level(tmp_path / "plain"))
    tokenizer = Tokenizer.load(byte_level(tmp_path / "holes", holes))
    expected = [i if i < 2 else 10 * i - 8 for i in plain.encode(SAMPLE)]
    assert tokenizer.encode(SAMPLE) == expected
    assert tokenizer.decode(expected) == SAMPLE
    assert tokenizer.encode("<five>") == [5]
    assert tokenizer.decode([5, 6, 12, 3]) == "<five>" + plain.decode([2])
    assert tokenizer.vocab_size == 10 * 311 - 8 + 1
    again = tmp_path / "again"
    tokenizer.save(again)
    assert Tokenizer.load(again).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("form", [edited(), metaspace, edited(post_processor=None)])
def test_byte_fallback_agrees_with_transformers(form: Edit, tmp_path: Path) -> None:
    ours, theirs = Tokenizer.load(llama(tmp_path, form)), public(tmp_path)
    for text in (SAMPLE, "", " a", "  a", "def def", "</s> x", "\n", "日本語 🙂 é"):
        ids = theirs(text)["input_ids"]
        assert ours.encode_prompt(text) == ids
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
        for skip in (True, False):
            assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)


LLAMA_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=30)


@pytest.fixture(scope="module")
def fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(llama(tmp_path_factory.mktemp("llama")))


@settings(deadline=None)
@given(text=LLAMA_TEXT)
def test_byte_fallback_round_trip(fallback: Tokenizer, text: str) -> None:
    ids = fallback.encode(text, parse_special=False)
    assert fallback.decode(ids) == text


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 280), max_size=30), prompt=st.lists(st.integers(3, 280), max_size=3))
def test_byte_fallback_streams(fallback: Tokenizer, ids: list[int], prompt: list[int]) -> None:
    for skip in (True, False):
        decoder = IncrementalDecoder(fallback, skip_special=skip)
        assert "".join(map(decoder.push, ids)) + decoder.finish() == fallback.decode(ids, skip_special=skip)
    start = fallback.id_of("d")  # a prompt that ends with a whole character
    decoder = IncrementalDecoder(fallback, continuing=True)
    pieces = "".join(map(decoder.push, ids)) + decoder.finish()
    before = fallback.decode([*prompt, start], skip_special=True)
    assert before + pieces == fallback.decode([*prompt, start, *ids], skip_special=True)


def test_a_completion_keeps_its_first_space(fallback: Tokenizer) -> None:
    decoder = IncrementalDecoder(fallback, continuing=True)
    [word] = fallback.encode("def")
    assert (decoder.push(word), fallback.decode([word])) == (" def", "def")


UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
WORDPIECE = {
    "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
    "vocab": {"[UNK]": 0, "a": 1},
}  # fmt: skip
UNSUPPORTED = r"supported are byte-level BPE \(GLM, DeepSeek, GPT-2\) and BPE with byte fallback \(Llama\)"


def add_entry(name: str) -> Edit:
    return lambda data: data["model"]["vocab"].update({name: 320})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edited(model=UNIGRAM), "type 'Unigram' is not supported; " + UNSUPPORTED),
        (edited(model=WORDPIECE), "type 'WordPiece' is not supported; " + UNSUPPORTED),
        (add_entry("a b"), "entry 'a b' holds ' '.*" + UNSUPPORTED),
        (add_entry("▁a"), "entry '▁a' holds '▁'.*" + UNSUPPORTED),
        (edited(decoder=None), "decoder is 'missing'.*" + UNSUPPORTED),
        (edited(decoder={"type": "BPEDecoder", "suffix": "</w>"}), UNSUPPORTED),
        (model(end_of_word_suffix="</w>"), "end_of_word_suffix is '</w>'"),
        (model(vocab=[]), "vocab is .*expected an object"),
        (model(merges=[["q", "qq"]]), "the tokenizers library refuses it"),
        (edited(model=None), "model is None"),
        (edited(version="1\n0"), "Unknown tokenizer version"),
        (edited(version="\0"), r"Unknown tokenizer version .\\x00"),
        (edited(added_tokens=[flags(id=9, content="x" * 10**5, special=1)]), "special of the token 'xxx"),
        (edited(added_tokens={}), "added_tokens is {}"),
        (edited(added_tokens=[flags(id=2**40, content="<x>")]), "expected a whole number"),
        (edited(added_tokens=[flags(id=True, content="<x>")]), "id of the added token '<x>' is True"),
        (edited(added_tokens=[flags(id=0, content=["<x>"])]), "content of an added token"),
        (edited(added_tokens=[flags(id=0, content="<x>")]), "id 0, which is that of '<|endoftext|>'"),
        (edited(added_tokens=[flags(id=7, content="<|user|>")]), "has the id 7, but 1 in the vocabulary"),
        (edited(added_tokens=[flags(id=1, content="<|user|>", special=1)]), "special of the token '<|user|>' is 1"),
        (lambda data: data["model"]["vocab"].update(a=5), "have the same id 5"),
        (edited(post_processor={"type": "BertProcessing", "sep": ["x", 999], "cls": ["y", 0]}), "adds the id 999"),
        (edited(post_processor={"type": "Other"}), "the post-processor is"),
        (edited(post_processor=[]), "the post-processor is"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(edit: Edit, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Tokenizer.load(byte_level(tmp_path, edit))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "tokenizer_config.json holds a list"),
        (None, "tokenizer_config.json holds a NoneType"),
        ({"eos_token": 5}, "eos_token in tokenizer_config.json is 5"),
        ({"eos_token": {"text": "x"}}, "eos_token in tokenizer_config.json is"),
        ({"pad_token": "<|pad|>"}, "names the token '<|pad|>', which is not in the vocabulary of tokenizer.json"),
        ({"additional_special_tokens": "<|user|>"}, "additional_special_tokens in tokenizer_config.json is"),
        ({"additional_special_tokens": [1]}, "additional_special_tokens in tokenizer_config.json is 1"),
        ({"added_tokens_decoder": []}, "added_tokens_decoder in tokenizer_config.json is a list"),
        ({"added_tokens_decoder": {"7": flags(content="<|user|>")}}, "with the id 7, which tokenizer.json gives 1"),
        ({"added_tokens_decoder": {"x": flags(content="<|user|>")}}, "expected a token's id"),
        ({"added_tokens_decoder": {"1": flags(content="<|user|>", special="yes")}}, "special of the token"),
    ],
)
def test_files_beside_it_are_checked(config: Any, message: str, tmp_path: Path) -> None:
    byte_level(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(tmp_path)


PLAIN = [flags(id=0, content="<|endoftext|>"), flags(id=1, content="<|user|>", special=False)]
USED = {"eos_token": "<|endoftext|>", "additional_special_tokens": ["<|user|>"]}


@pytest.mark.parametrize(
    ("added", "config", "text"),
    [
        (PLAIN, USED, "a<|user|>"),  # an added token stays what tokenizer.json says
        (PLAIN[:1], USED, "a"),  # an entry that is used becomes special
        (PLAIN, USED | {"added_tokens_decoder": {"1": flags(content="<|user|>")}}, "a"),
    ],
)
def test_what_the_configuration_says_of_tokens(added: Any, config: Any, text: str, tmp_path: Path) -> None:
    ours = Tokenizer.load(byte_level(tmp_path, edited(added_tokens=added), config))
    theirs = public(tmp_path)
    ids = ours.encode("a<|user|>")
    assert ids == theirs("a<|user|>")["input_ids"]
    assert ours.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True) == text
    assert (1 in ours.encode("a<|user|>", parse_special=False)) == (text != "a")


def test_what_else_stands_in_a_token_says_nothing(tmp_path: Path) -> None:
    said = {"added_tokens_decoder": {"1": flags(content="<|user|>", special=False) | {"used": "x", "source": "y"}}}
    ours = Tokenizer.load(
        byte_level(tmp_path, edited(added_tokens=PLAIN[:1]), USED | said | {"additional_special_tokens": []})
    )
    assert ours.decode(ours.encode("a<|user|>"), skip_special=True) == "a<|user|>"


def test_the_older_files_name_the_end_too(tmp_path: Path) -> None:
    byte_level(tmp_path, config={"eos_token": "<|endoftext|>"})
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": flags(content="<|user|>")}))
    ours, theirs = Tokenizer.load(tmp_path), public(tmp_path)
    assert ours.eos_ids == (theirs.eos_token_id,) == (1,)


def test_a_tokenizer_may_name_no_end(tmp_path: Path) -> None:
    data = json.loads((byte_level(tmp_path / "a") / "tokenizer.json").read_text())
    text = json.dumps(data).replace("<|endoftext|>", "<|begin|>")
    tokenizer = Tokenizer.load(write(tmp_path / "b", json.loads(text)))
    assert tokenizer.eos_ids == ()
    with pytest.raises(ValueError, match=r"give tokenizer_config\.json an eos_token"):
        _ = tokenizer.end_id
