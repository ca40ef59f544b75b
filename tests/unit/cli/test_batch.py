"""Prompts and results as lines of JSON: every line checked first, results at once, and gone on with after a stop."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.text.tokenizer import Tokenizer

Run = Callable[..., Any]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def prompts(tmp_path: Path, model_dir: Path) -> Path:
    ids = Tokenizer.load(model_dir).encode("return x")
    entries = [
        {"prompt": "def f", "id": "first"},
        {"ids": ids, "params": {"max_tokens": 3}},
        {"prompt": "x = \u2028", "id": 7, "params": {"temperature": 1.0, "seed": 4, "logprobs": 2}},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("\n\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n", encoding="utf-8")
    return file


def test_a_line_in_a_line_out(run: Run, model_dir: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    options = ("--model", model_dir, "--max-tokens", 6)
    result = run("generate", "--prompts", prompts, "--out", out, *options)
    assert (result.code, result.out) == (0, "")
    assert "3 results of 3 prompts" in result.err
    found = {entry["index"]: entry for entry in lines(out)}
    assert [found[n].get("id") for n in range(3)] == ["first", None, 7]
    assert (found[0]["prompt"], len(found[1]["ids"]) > 0, found[2]["prompt"]) == ("def f", True, "x = \u2028")
    assert [len(found[n]["token_ids"]) for n in range(3)] == [6, 3, 6]
    assert [len(entry["top"]) for entry in found[2]["logprobs"]] == [2] * 6 and "logprobs" not in found[0]
    llm = LLM(model_dir, cache_tokens=1024)
    alone = llm.generate(["x = \u2028"], SamplingParams(max_tokens=6, temperature=1.0, seed=4))
    assert found[2]["token_ids"] == alone[0].token_ids
    piped = run("generate", "--prompts", prompts, *options)
    by_index = sorted((json.loads(line) for line in piped.out.splitlines()), key=lambda entry: entry["index"])
    assert [entry["token_ids"] for entry in by_index] == [found[n]["token_ids"] for n in range(3)]


def test_what_is_there_is_not_made_again(
    run: Run, model_dir: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    command = ("generate", "--prompts", prompts, "--out", out, "--model", model_dir, "--max-tokens", 6)
    assert run(*command).code == 0
    whole = out.read_text(encoding="utf-8")
    first, second, third = whole.splitlines(keepends=True)
    out.write_text(first + second + third[:20], encoding="utf-8")  # killed in the middle of a line
    result = run(*command, "--json")
    assert json.loads(result.out)["kept"] == 2
    assert "holds 2 results of 3; 1 text left to write" in result.err
    made = lines(out)[2]
    assert {k: v for k, v in made.items() if k != "stats"} == {
        k: v for k, v in json.loads(third).items() if k != "stats"
    }
    monkeypatch.setattr(LLM, "__init__", None)  # nothing is left to do: no model is loaded
    assert run(*command).code == 0
    assert out.read_text(encoding="utf-8").startswith(first + second)


def test_results_of_others_are_not_written_over(run: Run, model_dir: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = ("generate", "--prompts", prompts, "--out", out, "--model", model_dir)
    assert run(*command, "--max-tokens", 6).code == 0
    before = out.read_bytes()
    result = run(*command, "--max-tokens", 7)
    assert result.code == 2
    assert "not a result of these prompts with these settings; give another --out, or remove the file" in result.err
    assert out.read_bytes() == before
    notes = tmp_path / "notes.txt"
    notes.write_text("milk\n")
    assert "notes.txt, line 1: not a result" in run(*command[:-3], notes, *command[-2:]).err
    assert notes.read_text() == "milk\n"


def test_an_interrupted_run_keeps_what_was_finished(
    run: Run, model_dir: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, plain = tmp_path / "out.jsonl", LLM.generate_each

    def stopped(self: LLM, *arguments: Any) -> Any:
        outputs = plain(self, *arguments)
        yield next(outputs)
        raise KeyboardInterrupt

    monkeypatch.setattr(LLM, "generate_each", stopped)
    command = ("generate", "--prompts", prompts, "--out", out, "--model", model_dir, "--max-tokens", 4)
    assert run(*command).code == 130
    assert len(lines(out)) == 1
    monkeypatch.undo()
    assert run(*command).code == 0
    assert sorted(entry["index"] for entry in lines(out)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("def f", "not valid JSON"),
        ("[1]", "holds a list; expected an object"),
        ("{}", 'expected either "prompt", a text, or "ids"'),
        ('{"prompt": "x", "ids": [1]}', "expected either"),
        ('{"prompt": 5}', "prompt is 5; expected a text"),
        ('{"ids": "x"}', 'ids is "x"; expected a list'),
        ('{"ids": [1, 99999]}', "token id 99999 is out of range"),
        ('{"ids": []}', "prompt is empty"),
        ('{"promt": "x"}', "the object has a key 'promt'; did you mean 'prompt'?"),
        ('{"prompt": "x", "params": {"temprature": 1}}', "did you mean 'temperature'?"),
        ('{"prompt": "x", "params": [1]}', "params is [1]; expected an object"),
        ('{"prompt": "x", "params": {"top_p": 7}}', "top_p is 7"),
        ('{"prompt": "x", "params": {"max_tokens": 99999}}', "exceed the context"),
    ],
)
def test_a_wrong_line_is_named_before_any_work(
    run: Run, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.setattr(LLM, "__init__", None)
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text('{"prompt": "fine"}\n\n' + line + "\n")
    result = run("generate", "--prompts", file, "--out", out, "--model", model_dir)
    assert (result.code, result.out, out.exists()) == (2, "", False)
    assert "in.jsonl, line 3: " in result.err and message in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("text", "--prompts", "in.jsonl"), "--prompts and other prompts both say"),
        (("--prompts", "in.jsonl", "--json"), "leave out --json, or give --out"),
        (("text", "--out", "o.jsonl"), "--out takes the results of --prompts"),
        (("--prompts", "empty.jsonl"), "empty.jsonl holds no prompt; expected one JSON object per line"),
        (("--prompts", "nowhere.jsonl"), "nowhere.jsonl: No such file"),
        (("--prompts", "in.jsonl", "--out", "no/o.jsonl"), "create it first"),
        (("--prompts", "in.jsonl", "--samples", 2), "in.jsonl, line 1: --samples (-n) 2 would write the same text"),
    ],
)
def test_options_that_do_not_go_together(
    run: Run, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"prompt": "x"}\n')
    Path("empty.jsonl").write_text("\n")
    result = run("generate", *arguments, "--model", model_dir)
    assert result.code == 2 and message in result.err


def test_prompts_from_standard_input(run: Run, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Input:
        buffer = io.BytesIO(b'\xef\xbb\xbf{"prompt": "def f"}\r\n')

    monkeypatch.setattr(sys, "stdin", Input())
    result = run("generate", "--prompts", "-", "--model", model_dir, "--max-tokens", 2)
    assert json.loads(result.out)["prompt"] == "def f"
