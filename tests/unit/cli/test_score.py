"""`score`: the same figures in JSON, as a table and in colours; windows are said."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexshare.cli.score import coloured
from indexshare.engine.llm import LLM
from indexshare.engine.outputs import TokenLogprobs
from indexshare.engine.scoring import TextScore
from indexshare.text.tokenizer import Tokenizer

Run = Callable[..., Any]
TEXT = "def f(x):\n    return x  # é\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.py"
    file.write_text(TEXT, encoding="utf-8")
    return file


def test_json_holds_what_the_library_says(run: Run, model_dir: Path, text: Path) -> None:
    facts = json.loads(run("score", text, "--model", model_dir, "--top", 2, "--json").out)
    score = LLM(model_dir, cache_tokens=256).score(TEXT, top=2)
    assert [t["id"] for t in facts["tokens"]] == Tokenizer.load(model_dir).encode(TEXT)
    assert facts["tokens"][0]["logprob"] is None
    assert [t["logprob"] for t in facts["tokens"][1:]] == [t.logprob for t in score.tokens if t is not None]
    assert all(len(t["top"]) == 2 for t in facts["tokens"][1:])
    assert facts["bits"] == pytest.approx(sum(-t["logprob"] for t in facts["tokens"][1:]) / math.log(2))
    assert facts["bits_per_byte"] == pytest.approx(facts["bits"] / facts["bytes"])
    assert (facts["windows"], facts["scored"]) == (1, len(facts["tokens"]) - 1)


def test_a_table_and_its_sums(run: Run, model_dir: Path, text: Path) -> None:
    facts = json.loads(run("score", text, "--model", model_dir, "--json").out)
    shown = run("score", text, "--model", model_dir)
    lines = shown.out.splitlines()
    assert lines[1].split() == ["token", "log-probability", "bits", "probability"]
    assert len(lines) == 2 + facts["scored"] + 6
    assert f"bits per byte    {facts['bits_per_byte']:.4f}" in lines


def test_after_and_windows(run: Run, model_dir: Path, text: Path) -> None:
    plain = json.loads(run("score", text, "--model", model_dir, "--json").out)
    behind = json.loads(run("score", text, "--model", model_dir, "--json", "--after", "class A:\n").out)
    assert behind["scored"] == plain["scored"] + 1 == len(behind["tokens"])
    assert behind["bytes"] == len(TEXT.encode())
    narrow = run("score", text, "--model", model_dir, "--json", "--window", 8, "--stride", 6)
    facts = json.loads(narrow.out)
    assert facts["windows"] > 1 and (facts["window"], facts["stride"]) == (8, 6)
    assert f"scored in {facts['windows']} windows of up to 8 tokens, 6 apart" in narrow.err


def test_characters_have_the_colour_of_their_least_likely_token(model_dir: Path) -> None:
    tokenizer = Tokenizer.load(model_dir)
    ids = tokenizer.encode("aé\x1b")
    assert len(ids) == 4, "é is two tokens"
    bits = [None, 0.1, 6.0, 100.0]
    tokens = tuple(
        None if b is None else TokenLogprobs(token_id=i, logprob=-b * math.log(2))
        for i, b in zip(ids, bits, strict=True)
    )
    found = TextScore(token_ids=tuple(ids), tokens=tokens, num_bytes=3, windows=1, window=9, stride=4)
    shown = coloured(found, tokenizer)
    assert shown.plain == "aé\ufffd", "no control characters on a terminal"
    assert [(shown.plain[s.start : s.end], s.style) for s in shown.spans if s.start < s.end] == [
        ("a", "dim"), ("é", "magenta"), ("\ufffd", "red"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", (), "text is empty"),
        ("d", (), "one token with nothing before it"),
        ("def f", ("--window", 0), "window is 0"),
        ("def f", ("--window", 4, "--stride", 5), "stride is 5; expected an integer from 1 to 4"),
        ("def f", ("--model", "nanoo"), "no model 'nanoo'"),
        (None, (), "No such file"),
    ],
)
def test_refusals(
    run: Run, model_dir: Path, tmp_path: Path, content: str | None, options: tuple[Any, ...], message: str
) -> None:
    file = tmp_path / "t.txt"
    if content is not None:
        file.write_text(content)
    model = () if "--model" in options else ("--model", model_dir)
    result = run("score", file, *model, *options)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
