"""The README says what is true: its example runs, its commands exist, its tree is the tree."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from indexshare.cli import build_app
from indexshare.config.shipped import shipped_models

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    if "nano" not in shipped_models():
        pytest.skip("no model `nano` in this checkout")
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert "tokens read" in capsys.readouterr().out


def commands() -> list[list[str]]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("indexshare ")]


@pytest.mark.parametrize("command", commands(), ids=lambda c: c[1])
def test_the_commands_parse(command: list[str]) -> None:
    function, bound, _ = build_app().parse_args(command[1:], exit_on_error=False, print_error=False)
    assert isinstance(function, Callable)
    assert bound.arguments or command[1:] == ["doctor"]


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_tree_is_the_tree() -> None:
    (tree,) = [block for block in blocks("") if block.startswith("indexshare/")]
    listed = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    present = {p.name for p in (ROOT / "indexshare").iterdir() if not p.name.startswith(("__", "py.typed"))}
    assert present - listed == set()
    assert listed - present <= {"shipped"}
    folders = [line.split()[0] for line in tree.splitlines() if not line.startswith(" ")]
    assert [f for f in folders if not (ROOT / f).is_dir()] == []
