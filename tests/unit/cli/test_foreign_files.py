"""The command on a model whose files come from elsewhere: what they say reaches it as transformers reads it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexshare.text.tokenizer import Tokenizer
from tests.unit.text.test_foreign_tokenizers import PADDING, TRUNCATION

Run = Callable[..., Any]
LONG = "def f(x):\n    return x + 1\n" * 8


@pytest.fixture
def foreign(model_dir: Path, tmp_path: Path) -> Path:
    """`model_dir` with a tokenizer that cuts texts at 16 tokens, fills them up, and begins each with a token."""
    folder = Path(shutil.copytree(model_dir, tmp_path / "foreign"))
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    first = [{"SpecialToken": {"id": "<|user|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {"<|user|>": {"id": "<|user|>", "ids": [2], "tokens": ["<|user|>"]}}
    template = {"type": "TemplateProcessing", "single": first, "pair": first, "special_tokens": tokens}
    data |= {"truncation": TRUNCATION, "padding": PADDING, "post_processor": template}
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def test_generate_reads_the_whole_prompt(run: Run, model_dir: Path, foreign: Path) -> None:
    [completion] = json.loads(run("generate", LONG, "--model", foreign, "--max-tokens", 2, "--json").out)["completions"]
    assert completion["stats"]["prompt_tokens"] == len(Tokenizer.load(model_dir).encode(LONG)) + 1 > 60


def test_complete_counts_the_whole_context(run: Run, model_dir: Path, foreign: Path, source_dir: Path) -> None:
    (source_dir / "main.py").write_text(LONG)
    options = ("complete", source_dir / "main.py", "--context", source_dir, "--max-tokens", 2, "--json")
    plain, found = (json.loads(run(*options, "--model", folder).out) for folder in (model_dir, foreign))
    assert found["files"] == plain["files"]
    assert found["stats"]["prompt_tokens"] == plain["stats"]["prompt_tokens"] + 1
    limited = json.loads(run(*options, "--model", foreign, "--max-context-tokens", 80).out)
    assert 40 < limited["stats"]["prompt_tokens"] <= 80


def say(folder: Path, **settings: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps(settings))


def test_generate_follows_the_generation_file(run: Run, foreign: Path) -> None:
    options = ("generate", "def f", "--model", foreign, "--seed", 3, "--json")
    ids = {}
    for name, settings, given in (
        ("nothing said", {}, ("--max-tokens", 12)),
        ("greedy", {"do_sample": False, "temperature": 2.0}, ("--max-tokens", 12)),
        ("sampled", {"do_sample": True, "temperature": 2.0, "max_new_tokens": 12}, ()),
        ("given", {"do_sample": True, "temperature": 2.0}, ("--max-tokens", 12, "--temperature", 0)),
        ("asked", {}, ("--max-tokens", 12, "--temperature", 2.0)),
    ):
        say(foreign, eos_token_id=319, **settings)
        ids[name] = json.loads(run(*options, *given).out)["completions"][0]["token_ids"]
    assert ids["nothing said"] == ids["greedy"] == ids["given"] != ids["sampled"] == ids["asked"]
    say(foreign, eos_token_id=ids["greedy"][2])
    stopped = json.loads(run(*options, "--max-tokens", 12).out)["completions"][0]
    assert (stopped["token_ids"], stopped["finish_reason"]) == (ids["greedy"][:3], "stop")


def test_the_command_says_that_it_samples(run: Run, foreign: Path, source_dir: Path) -> None:
    say(foreign, do_sample=True, temperature=0.6, top_p=0.95, max_new_tokens=10**7, eos_token_id=[*range(320)])
    line = "sampling as the model's generation_config.json says: temperature 0.6, top_p 0.95; --temperature 0 takes"
    for verb in (("generate", "def f"), ("complete", source_dir / "main.py")):
        result = run(*verb, "--model", foreign)
        assert (result.code, line in result.err) == (0, True), result.err
        assert "sampling as" not in run(*verb, "--model", foreign, "--temperature", 0.5).err
    say(foreign, top_p="x")
    result = run("generate", "def f", "--model", foreign)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert 'generation_config.json: top_p is "x"' in result.err
