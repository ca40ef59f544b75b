"""`--draft-tokens`, `--drafter` and `--stats`: the same text, what drafts were good for, and who is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexshare.cli import output

Run = Callable[..., Any]


@pytest.mark.parametrize("drafter", ["lookup", "mtp", "both"])
@pytest.mark.parametrize("count", [3, "auto"])
def test_the_same_text_with_drafts(run: Run, model_dir: Path, drafter: str, count: object) -> None:
    text = "def f(x): return x def f(x)"
    options = ("generate", text, "--model", model_dir, "--max-tokens", 40, "--ignore-eos", "--json")
    (plain,) = json.loads(run(*options).out)["completions"]
    (drafted,) = json.loads(run(*options, "--draft-tokens", count, "--drafter", drafter).out)["completions"]
    assert drafted["token_ids"] == plain["token_ids"]
    assert plain["stats"]["draft_rounds"] == 0 and plain["stats"]["accepted_length"] == 0
    stats = drafted["stats"]
    if count == 3 and drafter != "lookup":
        assert stats["draft_rounds"] > 0
        assert stats["drafted_by_place"][0] == stats["draft_rounds"]
        assert stats["accepted_length"] == pytest.approx(1 + stats["accepted_tokens"] / stats["draft_rounds"])


def test_what_drafts_were_good_for_is_shown(run: Run, model_dir: Path, source_dir: Path) -> None:
    shown = run("generate", "def f", "--model", model_dir, "--max-tokens", 20, "--draft-tokens", 2, "--drafter", "mtp",
                "--ignore-eos", "--stats")  # fmt: skip
    assert shown.code == 0
    assert "accepted (" in shown.err and "tokens a round" in shown.err and "place" in shown.err
    assert "accepted" not in shown.out
    place = ("complete", source_dir / "main.py", "--context", source_dir, "--model", model_dir, "--max-tokens", 6)
    assert "no drafts were verified" in run(*place, "--stats").err


def test_wrong_numbers_are_refused(run: Run, model_dir: Path) -> None:
    refused = run("generate", "x", "--model", model_dir, "--draft-tokens", 99)
    assert refused.code == 2
    assert "draft_tokens is 99" in refused.err
    assert run("generate", "x", "--model", model_dir, "--drafter", "oracle").code == 2


def test_accepted_drafts_are_coloured_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output.write("plain", style="green")
    assert capsys.readouterr().out == "plain"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    output.write("a\x1bb\n", style="green")
    shown = capsys.readouterr().out
    assert "\x1b[32m" in shown and "a�b" in shown
