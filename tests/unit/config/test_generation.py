"""`generation_config.json`: what it may say, what follows from it, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from indexshare.config.generation import GenerationDefaults


@pytest.mark.parametrize(
    ("said", "samples", "sampling"),
    [
        ({}, None, {}),
        ({"eos_token_id": 3, "max_length": 20, "anything": [1]}, None, {}),
        ({"do_sample": True}, True, {}),
        ({"do_sample": True, "temperature": 1.0, "top_p": 0.95}, True, {"temperature": 1.0, "top_p": 0.95}),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, False, {"temperature": 0.0}),
        ({"temperature": 0.6, "top_k": 20, "min_p": 0}, True, {"temperature": 0.6, "top_k": 20, "min_p": 0.0}),
        ({"temperature": 0}, False, {"temperature": 0.0}),
        ({"top_k": -1, "do_sample": True}, True, {"top_k": 0}),
        ({"top_p": None, "temperature": None}, None, {}),
        ({"max_new_tokens": 64, "repetition_penalty": 1.1}, None, {"repetition_penalty": 1.1, "max_tokens": 64}),
        ({"stop_strings": "END"}, None, {"stop": ("END",)}),
        ({"stop_strings": ["a", "b"]}, None, {"stop": ("a", "b")}),
    ],
)
def test_what_follows(said: dict[str, Any], samples: bool | None, sampling: dict[str, Any]) -> None:
    found = GenerationDefaults.from_dict(said)
    assert found.samples is samples
    assert found.sampling() == sampling
    assert found.not_implemented == ()


def test_ids_that_end_a_text() -> None:
    cases: list[tuple[Any, Any]] = [(5, (5,)), ([3, 5], (3, 5)), ([], ()), (None, None)]
    for value, expected in cases:
        assert GenerationDefaults.from_dict({"eos_token_id": value}).eos_token_ids == expected


def test_what_is_not_implemented_is_named() -> None:
    said = {"num_beams": 4, "no_repeat_ngram_size": 0, "bad_words_ids": [[1]], "guidance_scale": 1.0, "typical_p": None}
    assert GenerationDefaults.from_dict(said).not_implemented == ("num_beams=4", "bad_words_ids=[[1]]")
    neutral = {"num_beams": 1, "length_penalty": 2.0, "suppress_tokens": [], "min_length": 0, "typical_p": 1.0}
    assert GenerationDefaults.from_dict(neutral).not_implemented == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b'{"eos_token_id": "x"}', 'eos_token_id is "x"; expected an id'),
        (b'{"eos_token_id": [1, [2]]}', "eos_token_id"),
        (b'{"eos_token_id": true}', "eos_token_id"),
        (b'{"eos_token_id": -1}', "eos_token_id"),
        (b'{"do_sample": 1}', "do_sample .* expected true or false"),
        (b'{"temperature": "0.6"}', "temperature .* expected a number 0 or more"),
        (b'{"temperature": -1}', "temperature"),
        (b'{"temperature": NaN}', "temperature"),
        (b'{"temperature": 1e999}', "temperature"),
        (b'{"top_p": 0}', "top_p .* above 0 and at most 1"),
        (b'{"top_k": 2.5}', "top_k .* expected a whole number"),
        (b'{"max_new_tokens": 0}', "max_new_tokens"),
        (b'{"repetition_penalty": 0}', "repetition_penalty"),
        (b'{"stop_strings": [""]}', "stop_strings"),
    ],
)
def test_what_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        GenerationDefaults.load(tmp_path)
    assert "generation_config.json" in str(error.value)


def test_no_file_says_nothing(tmp_path: Path) -> None:
    assert GenerationDefaults.load(tmp_path) == GenerationDefaults()
