"""The tokenizer: lossless on any text, whole characters while streaming, and files that the public tools read alike."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexshare.text.tokenizer import (
    END_OF_TEXT,
    SPECIAL_TOKENS,
    IncrementalDecoder,
    Tokenizer,
    file_header,
    train_bpe,
)

TEXTS = [
    "def read_file(path):\n    with open(path) as file:\n        return file.read()\n",
    "class Node:\n\tdef __init__(self, value=10):\n\t\tself.value = value\r\n",
    "# Grüße, 日本語, 🙂 and café: x += 12345\n",
] * 5
TOKENIZER = train_bpe(TEXTS, 320)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
CODE = st.lists(
    st.sampled_from(
        ["def f(", "\n", "\r\n", "    ", "\t", " ", "x_1", ".", "==", "123", "é", "🙂", "\0", *SPECIAL_TOKENS]
    ),
    max_size=25,
).map("".join)
IDS = st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40)


@settings(deadline=None)
@given(ANY_TEXT | CODE)
def test_round_trip_of_any_text(text: str) -> None:
    for parse_special in (True, False):
        ids = TOKENIZER.encode(text, parse_special=parse_special)
        assert TOKENIZER.decode(ids) == text
        assert TOKENIZER.decode_bytes(ids) == text.encode("utf-8")
        assert all(0 <= i < TOKENIZER.vocab_size for i in ids)


@settings(deadline=None)
@given(ANY_TEXT | CODE)
def test_special_tokens_are_not_parsed_from_source_text(text: str) -> None:
    special = set(TOKENIZER.special_tokens.values())
    assert not special.intersection(TOKENIZER.encode(text, parse_special=False))


def test_special_tokens_are_parsed_on_request_and_skipped_on_request() -> None:
    text = f"a{END_OF_TEXT}b<|user|>"
    ids = TOKENIZER.encode(text)
    end, user = TOKENIZER.id_of(END_OF_TEXT), TOKENIZER.id_of("<|user|>")
    assert [i for i in ids if i in TOKENIZER.special_tokens.values()] == [end, user]
    assert (TOKENIZER.decode(ids), TOKENIZER.decode(ids, skip_special=True)) == (text, "ab")
    assert TOKENIZER.encode(text, parse_special=False) != ids
    assert TOKENIZER.encode(text) == ids  # the choice of one call does not stay


@settings(deadline=None)
@given(IDS)
def test_streaming_gives_the_full_text_in_whole_characters(ids: list[int]) -> None:
    for skip in (True, False):
        decoder = IncrementalDecoder(TOKENIZER, skip_special=skip)
        pieces = [decoder.push(i) for i in ids]
        assert "".join(pieces) + decoder.finish() == TOKENIZER.decode(ids, skip_special=skip)


@settings(deadline=None)
@given(ANY_TEXT)
def test_streaming_never_shows_half_a_character(text: str) -> None:
    decoder, shown = IncrementalDecoder(TOKENIZER), ""
    for i in TOKENIZER.encode(text, parse_special=False):
        shown += decoder.push(i)
        assert text.startswith(shown)
    assert decoder.finish() == ""
    assert shown == text


def test_a_character_that_never_ends_is_replaced() -> None:
    ids = TOKENIZER.encode("\N{PILE OF POO}")[:-1]
    decoder = IncrementalDecoder(TOKENIZER)
    assert "".join(decoder.push(i) for i in ids) == ""
    assert decoder.finish() == "\N{REPLACEMENT CHARACTER}" == TOKENIZER.decode(ids)


def test_vocabulary_layout_and_pieces() -> None:
    assert [TOKENIZER.id_of(name) for name in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert TOKENIZER.eos_ids == (0,)
    assert {TOKENIZER.token_bytes(i) for i in range(TOKENIZER.vocab_size)} >= {bytes([b]) for b in range(256)}
    digits = TOKENIZER.encode("x = 2024")
    assert [TOKENIZER.decode([i]) for i in digits][-4:] == list("2024")
    assert file_header("a/b.py") == "# file: a/b.py\n"


def test_training_is_deterministic() -> None:
    assert train_bpe(iter(TEXTS), 320).fingerprint == TOKENIZER.fingerprint
    assert train_bpe(TEXTS[:1], 320).fingerprint != TOKENIZER.fingerprint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save(path)
    return path


def test_saved_files_load_again(folder: Path) -> None:
    loaded = Tokenizer.load(folder)
    assert loaded.fingerprint == TOKENIZER.fingerprint
    assert loaded.eos_ids == TOKENIZER.eos_ids
    assert sorted(p.name for p in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@settings(max_examples=50, deadline=None)
@given(text=ANY_TEXT | CODE)
def test_transformers_reads_the_files_alike(public: object, text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert public(text, add_special_tokens=False)["input_ids"] == ids  # type: ignore[operator]
    assert public(text)["input_ids"] == ids  # type: ignore[operator]
    assert public.decode(ids, clean_up_tokenization_spaces=False) == text  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def public(folder: Path) -> object:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(folder)
    assert loaded.eos_token == loaded.pad_token == END_OF_TEXT
    assert len(loaded) == TOKENIZER.vocab_size
    return loaded


def test_the_configuration_names_the_end_of_text(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    for value in ("<|user|>", {"content": "<|user|>"}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": value}))
        assert Tokenizer.load(tmp_path).eos_ids == (TOKENIZER.id_of("<|user|>"),)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|nothing|>"}))
    with pytest.raises(ValueError, match=r"<\|nothing\|>.*not in the vocabulary"):
        Tokenizer.load(tmp_path)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match="cannot read"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match="lone surrogate at character 1"):
        TOKENIZER.encode("a\ud800")
    for bad in (-1, TOKENIZER.vocab_size):
        with pytest.raises(ValueError, match=f"token id {bad} is out of range"):
            TOKENIZER.decode([0, bad])
    with pytest.raises(ValueError, match="'no such' is not in the vocabulary"):
        TOKENIZER.id_of("no such")
    with pytest.raises(ValueError, match="vocab_size 200 is too small"):
        train_bpe(TEXTS, 200)
    with pytest.raises(ValueError, match="special_tokens is empty"):
        train_bpe(TEXTS, 400, ())


def test_a_damaged_configuration_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_tok')
    with pytest.raises(ValueError, match=r"cannot read .*tokenizer_config\.json"):
        Tokenizer.load(tmp_path)
