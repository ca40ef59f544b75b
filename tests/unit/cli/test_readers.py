"""Whatever way a file comes in, as a prompt, as training text or to be completed, the model reads the same text."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexshare.cli.prompts import read_prompt
from indexshare.data.corpus import TextFolder, read_folder
from indexshare.repository.source_tree import read_cursor, read_tree

BYTES = b"\xef\xbb\xbfdef f(x):\r\n    return x\r# end"
TEXT = "def f(x):\n    return x\n# end"


def test_all_readers_read_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.py"
    file.write_bytes(BYTES)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BYTES)))
    assert read_prompt(str(file)) == read_prompt("-") == TEXT
    assert read_cursor(str(file)).before == TEXT
    assert read_tree(tmp_path).files[0].text == TEXT + "\n"
    assert read_folder(TextFolder(path=str(tmp_path))).documents[0].text == TEXT


def test_a_prompt_file_is_the_prompt_it_shows(run: Callable[..., Any], model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(BYTES)
    options = ("--model", model_dir, "--max-tokens", 4, "--json")
    from_file = json.loads(run("generate", "--file", tmp_path / "a.txt", *options).out)
    assert from_file["completions"][0]["prompt"] == TEXT
    typed = json.loads(run("generate", TEXT, *options).out)
    assert from_file["completions"][0]["token_ids"] == typed["completions"][0]["token_ids"]
