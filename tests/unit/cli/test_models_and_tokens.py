"""`models` and `tokenize`: what ships, what lies in a folder, and what a text is to a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexshare.cli.models import first_sentence
from indexshare.config.model import ModelConfig
from indexshare.config.shipped import shipped_models
from indexshare.planner.memory import count_parameters
from indexshare.text.tokenizer import Tokenizer

Run = Callable[..., Any]


def test_the_shipped_models(run: Run) -> None:
    found = json.loads(run("models", "--json").out)["models"]
    assert [facts["name"] for facts in found] == list(shipped_models())
    for facts in found:
        config = ModelConfig.load(Path(facts["path"]))
        assert facts["parameters"] == count_parameters(config).total
        assert (facts["context"], facts["dtype"]) == (config.max_position_embeddings, config.dtype)
        assert facts["bytes"] == (Path(facts["path"]) / "model.safetensors").stat().st_size
        assert facts["tokenizer"] and facts["description"].endswith(".")
    shown = run("models")
    assert "nano" in shown.out and "pico: The architecture of GLM-5.2" in shown.out


def test_the_models_of_a_folder(run: Run, model_dir: Path, tmp_path: Path) -> None:
    for place in ("b/run/model", "a", ".hidden", "x/1/2/3/4/5"):
        shutil.copytree(model_dir, tmp_path / place)
    (tmp_path / "a" / "README.md").write_text("# Title\n\nThe first one. The second.\n")
    (tmp_path / "b" / "config.json").write_text('{"model_type": "other"}')
    found = json.loads(run("models", tmp_path, "--json").out)["models"]
    assert [Path(facts["path"]).relative_to(tmp_path).as_posix() for facts in found] == ["a", "b", "b/run/model"]
    assert found[0]["description"] == "The first one." and "error" in found[1] and found[2]["description"] is None
    shown = run("models", tmp_path)
    assert "b cannot be read: " in shown.err and shown.out.count("tiny") == 0 and "The first one." in shown.out
    assert run("models", tmp_path / "a" / "README.md").err.endswith("is a file; expected a folder to search\n")
    assert "not there" in run("models", tmp_path / "nowhere").err
    (tmp_path / "none").mkdir()
    assert "no config.json in" in run("models", tmp_path / "none").err


def test_what_a_card_says_first(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    assert first_sentence(card) is None
    card.write_text("---\nlicense: mit\n---\n\n# Name\n\n| a | b |\n|---|---|\n\nSmall,\nwith 1.5 parts. More.\n")
    assert first_sentence(card) == "Small, with 1.5 parts."
    card.write_bytes(b"\xff\xfe")
    assert first_sentence(card) is None


def test_tokens_there_and_back(run: Run, model_dir: Path, tmp_path: Path) -> None:
    text = "def f(x): # é\n"
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    facts = json.loads(run("tokenize", text, "-f", tmp_path / "t.txt", "-m", model_dir, "--json").out)["texts"]
    tokenizer = Tokenizer.load(model_dir)
    assert facts[0] == facts[1]
    assert facts[0]["ids"] == tokenizer.encode_prompt(text)
    assert (facts[0]["tokens"], facts[0]["characters"], facts[0]["bytes"]) == (len(facts[0]["ids"]), 14, 15)
    assert facts[0]["pieces"][-3:-1] == ["\\xc3", "\\xa9"]
    shown = run("tokenize", text, "-m", model_dir)
    assert "b'\\xc3'" in shown.out and f"{facts[0]['tokens']} tokens, 14 characters, 15 bytes" in shown.err
    ids = [str(i) for i in facts[0]["ids"]]
    for written in ([" ".join(ids)], ["[" + ", ".join(ids) + "]"], ids):
        assert run("tokenize", "--decode", *written, "-m", model_dir).out == text
    assert json.loads(run("tokenize", "--decode", *ids, "-m", model_dir, "--json").out)["text"] == text
    assert "1 token, 1 character, 1 byte:" in run("tokenize", "d", "-m", model_dir).err


def test_special_tokens_by_name_or_as_text(run: Run) -> None:
    (named,) = json.loads(run("tokenize", "<|endoftext|>", "--json").out)["texts"]
    (plain,) = json.loads(run("tokenize", "<|endoftext|>", "--plain", "--json").out)["texts"]
    assert named["ids"] == [0] and len(plain["ids"]) > 1 and 0 not in plain["ids"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to read"),
        (("--decode", "x"), "'x' is no token id"),
        (("--decode", "1.5"), "'1.5' is no token id"),
        (("--decode", "4096"), "a token id is 4096; expected an integer from 0 to 4095"),
        (("--decode", "1", "--plain"), "--plain is about reading"),
        (("x", "--model", "nanoo"), "no model 'nanoo'"),
    ],
)
def test_tokenize_refuses(run: Run, arguments: tuple[str, ...], message: str) -> None:
    result = run("tokenize", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
