"""`indexshare overlap`: tables, JSON, picture, page, explanation, and what it refuses."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.sharing.conftest import Result

Run = Callable[..., Result]
HERE = Path(__file__).parent


def test_tables(run: Run, full_dir: Path, text_dir: Path) -> None:
    done = run("overlap", full_dir, "--text", text_dir, "--lengths", "64", "--windows", "2")
    assert done.code == 0, done.err
    for words in ("overlap of neighbours", "attention kept by", "own choice", "indexers", "overlap of selections, %"):
        assert words in done.out
    assert "64 of 112, in 2 windows" not in done.out and "112 of 112, in 2 windows" in done.out


def test_json_picture_page_and_explanation(run: Run, full_dir: Path, text_dir: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "o.html", tmp_path / "o.png"
    done = run(
        "overlap", full_dir, "--text", text_dir, "--lengths", "48,64", "--windows", "2", "--queries", "16",
        "--explain", "50", "--html", page, "--plot", picture, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert [report["length"] for report in facts["reports"]] == [48, 64]
    assert facts["explain"]["position"] == 50 and len(facts["explain"]["words"]) == 51
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    assert "http://" not in text.replace("http://www.w3.org", "") and "https://" not in text
    again = run("overlap", full_dir, "--text", text_dir, "--explain", "50", "--html", page, "--json")
    assert again.code == 0 and json.loads(again.out)["reports"] == []


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_page_shows_the_figures(run: Run, full_dir: Path, text_dir: Path, tmp_path: Path) -> None:
    page = tmp_path / "o.html"
    done = run(
        "overlap", full_dir, "--text", text_dir, "--lengths", "64", "--windows", "2", "--explain", "50",
        "--html", page, "--json",
    )  # fmt: skip
    report = json.loads(done.out)["reports"][0]
    shown = subprocess.run(
        ["node", str(HERE / "page_check.js"), str(page), "FSSFSS"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    seen = json.loads(shown.stdout)
    assert seen["title"].endswith("full") and "2 windows of 64 tokens" in seen["about"]
    assert f"attention kept: {100 * report['recall'][0][0][0]:.1f} %" in seen["cell"]
    assert seen["rows"] == 7
    kept = [report["recall"][2][layer][full] for layer, full in ((1, 0), (2, 0), (4, 3), (5, 3))]
    assert f"{100 * sum(kept) / 4:.1f} %" in seen["verdict"]
    assert seen["where"] == f"{report['edges'][1]} to {report['edges'][2] - 1}"
    assert "common tokens: 100.0 %" in seen["common"] and "6 letters" in seen["refused"]
    assert seen["words"] == 51 and "token 1" in seen["word"] and "Layer 0 chose 8 of 51" in seen["answer"]


def test_the_explanation_in_the_terminal(run: Run, full_dir: Path, text_dir: Path) -> None:
    done = run("overlap", f"{full_dir}@FFFSSS", "--text", text_dir, "--explain", "60")
    assert done.code == 0, done.err
    assert "layer 2 chose 8 of 61 tokens; kept by layer 2: " in done.out and "layer 5, %" in done.out


def test_the_same_command_goes_on(run: Run, full_dir: Path, text_dir: Path, tmp_path: Path) -> None:
    command = (
        "overlap", full_dir, "--text", text_dir, "--lengths", "64", "--windows", "2", "--state", tmp_path / "s.json",
        "--json",
    )  # fmt: skip
    first, second = run(*command), run(*command)
    assert first.code == second.code == 0 and first.out == second.out
    other = run(*command, "--queries", "3")
    assert other.code == 2 and "queries was 64, is now 3" in other.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--lengths", "8"), "nothing is chosen"),
        (("--lengths", "100K"), "the model's context"),
        (("--lengths", "64", "--windows", "9999"), "give more text"),
        (("--lengths", "x"), "--lengths is 'x'"),
        (("--lengths", "64", "--queries", "0"), "--queries is 0"),
        (("--explain", "2"), "attends to all 3 tokens"),
        (("--explain", "-1"), "--explain is -1"),
        (("--explain", "20", "--plot", "x.png"), "--plot draws what is measured"),
        (("--html", "x.txt"), "ends in .html"),
        (("--plot", "x.txt"), "ends in one of"),
    ],
)
def test_what_it_refuses(run: Run, full_dir: Path, text_dir: Path, arguments: tuple[str, ...], words: str) -> None:
    done = run("overlap", full_dir, "--text", text_dir, *arguments)
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize("verb", [("overlap", "--lengths", "64"), ("search", "--keep", "2", "--length", "64")])
def test_a_stop_says_how_to_go_on(
    run: Run, full_dir: Path, text_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: tuple[str, ...]
) -> None:
    from indexshare.cli.measuring import MeasuringBar

    calls = 0

    def stop(self: MeasuringBar, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    name, *rest = verb
    command = (name, full_dir, *rest, "--text", text_dir, "--windows", "2", "--state", tmp_path / "s.json", "--json")
    with monkeypatch.context() as patch:
        patch.setattr(MeasuringBar, "__call__", stop)
        stopped = run(*command)
    assert stopped.code == 130 and "the same command goes on from there" in stopped.err and stopped.out == ""
    again = run(*command)
    assert again.code == 0 and json.loads(again.out)
