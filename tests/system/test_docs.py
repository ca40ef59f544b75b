"""README and docs say what is true: links lead somewhere, commands parse, Python runs, trees are current."""

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from indexshare.cli import build_app
from tests.documents import ROOT, anchors, blocks, broken_links, documents, links

DOCUMENTS = documents()
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCUMENTS}
GUIDE = TEXTS["docs/python.md"]
HISTORY = ("docs/LOG.md", "CHANGELOG.md")  # say what was; files they name may be gone


@pytest.mark.parametrize("path", DOCUMENTS, ids=TEXTS)
def test_links_lead_somewhere(path: Path) -> None:
    assert broken_links(path, path.read_text(encoding="utf-8")) == []


def test_the_link_checker_sees_what_is_broken() -> None:
    text = "# One `x`\n\n[a](#one-x) [b](#two) [c](docs/nothing.md) ![d](docs/peers.png) [e](https://example.org)\n`[f](g)`"
    assert anchors(text) == {"one-x"} and len(links(text)) == 5
    assert broken_links(ROOT / "README.md", text) == ["#two: no such heading", "docs/nothing.md: no such file"]


def commands() -> list[tuple[str, list[str]]]:
    found = []
    for name, text in TEXTS.items():
        lines = [line for block in blocks(text, "sh") for line in block.replace("\\\n", " ").splitlines()]
        lines += re.findall(
            r"`(indexshare [a-z][^`]*)`", re.sub(r"```.*?```", "", text.replace("\n", " "), flags=re.DOTALL)
        )
        for line in lines:
            words = shlex.split(line, comments=True) if line.startswith("indexshare ") else []
            if words and name not in HISTORY and not set(words) & {"VERB", "MODEL", "[MODEL]"}:
                found.append((name, words))
    return found


@pytest.mark.parametrize(
    ("name", "command"), commands(), ids=lambda value: value if isinstance(value, str) else value[1]
)
def test_every_command_parses(name: str, command: list[str]) -> None:
    if len(command) == 2:
        assert build_app()[command[1]], f"{name} speaks of a verb"
        return
    function, bound, _ = build_app().parse_args(command[1:], exit_on_error=False, print_error=False)
    assert isinstance(function, Callable) and bound.arguments


def test_commands_were_found() -> None:
    verbs = {command[1] for _, command in commands()}
    assert {"complete", "generate", "train", "eval", "export", "bench", "doctor", "info"} <= verbs


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name, text in TEXTS.items():
        for target in re.findall(r"(?:^|`)make ([a-z-]+)(?:`|$)", text, re.MULTILINE):
            assert name in HISTORY or re.search(rf"^{target}:", makefile, re.MULTILINE), (name, target)


def named_files() -> list[tuple[str, str]]:
    """Files of the project that a text names in backquotes, such as `config/share_plan.py`."""
    pattern = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|json|csv|png|hpp|cpp|toml))`")
    return [(name, file) for name, text in TEXTS.items() if name not in HISTORY for file in pattern.findall(text)]


@pytest.mark.parametrize(("name", "file"), sorted(set(named_files())))
def test_files_that_are_named_exist(name: str, file: str) -> None:
    if file.startswith(("runs/", "src/", "presets/")) or "/" not in file:
        pytest.skip("not a file of this repository")
    assert any((ROOT / folder / file).exists() for folder in ("", "indexshare", "docs")), f"{name} names {file}"


def test_the_readme_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks(TEXTS["README.md"], "python")
    exec(compile(example, "README.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    asked, answered = re.findall(r"\d{4}", first)
    assert abs(int(asked) - int(answered)) < 10000 and "of them attended" in second


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks(GUIDE, "python"):
        exec(compile(block, "docs/python.md", "exec"), names)
    assert "indexers at (0, 1, 2, 6, 10)" in capsys.readouterr().out
    assert (tmp_path / "copy" / "tokenizer.json").is_file() and (tmp_path / "runs/tuned/model/config.json").is_file()


@pytest.mark.parametrize("name", [name for name in TEXTS if name not in HISTORY])
def test_python_in_documents_compiles(name: str) -> None:
    for block in blocks(TEXTS[name], "python"):
        compile(block, name, "exec")


def test_the_tree_is_the_tree() -> None:
    (tree,) = [block for block in blocks(TEXTS["docs/architecture.md"], "") if block.startswith("indexshare/")]
    listed = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")}
    present = {p.name for p in (ROOT / "indexshare").iterdir() if not p.name.startswith(("__", "py.typed"))}
    assert present - listed == set()
    assert listed - present <= {"shipped"}
    folders = [line.split()[0] for line in tree.splitlines() if not line.startswith(" ")]
    assert [f for f in folders if not (ROOT / f).is_dir()] == []


def test_the_picture_of_the_floors_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    sys.modules.pop("draw_floors", None)
    from draw_floors import PICTURE, draw

    assert PICTURE.read_text(encoding="utf-8") == draw(), "run: python docs/draw_floors.py"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, todo = set[Path](), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page.read_text(encoding="utf-8"))]
        todo += [t for t in targets if t.suffix == ".md" and t.is_file() and t not in reached]
    assert {path.relative_to(ROOT).as_posix() for path in DOCUMENTS if path.parent == ROOT / "docs"} <= {
        path.relative_to(ROOT).as_posix() for path in reached
    }
