"""`indexshare search`: the pattern in every spelling, the checkpoint without surplus indexers, what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from indexshare.checkpoint.load import load_model
from tests.unit.sharing.conftest import Result

Run = Callable[..., Result]


def arguments(model: object, text: Path, *more: object) -> tuple[object, ...]:
    return ("search", model, "--keep", "1/3", "--text", text, "--length", "40", "--windows", "3", *more)


def test_what_it_finds_is_written_and_loads(run: Run, full_dir: Path, text_dir: Path, tmp_path: Path) -> None:
    out, picture = tmp_path / "found", tmp_path / "s.png"
    done = run(*arguments(full_dir, text_dir, "--out", out, "--plot", picture, "--json"))
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    assert facts["pattern"].count("F") == 2 and facts["spellings"]["index_topk_pattern"] == facts["pattern"]
    assert len(facts["steps"]) == 5 and facts["layer_evaluations"] < facts["plain_layer_evaluations"]
    model = load_model(out)
    assert model.plan.pattern == facts["pattern"]
    names = [name for name in model.state_dict() if "indexer" in name and name.startswith("layers.")]
    assert len({name.split(".")[1] for name in names}) == 2
    assert json.loads((out / "sharing.json").read_text())["pattern"] == facts["pattern"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = run("overlap", out, "--text", text_dir, "--lengths", "40", "--windows", "1", "--json")
    assert again.code == 0 and json.loads(again.out)["reports"][0]["pattern"] == facts["pattern"]


@pytest.mark.parametrize(
    "more",
    [
        ("--method", "beam", "--beam", "2"),
        ("--method", "similarity"),
        ("--method", "uniform", "--refine"),
        ("--blocks", "2", "--objective", "far"),
        ("--refine", "--exact"),
        ("--refine", "--tolerance", "0.01"),
    ],
)
def test_every_method_gives_a_plan(run: Run, full_dir: Path, text_dir: Path, more: tuple[str, ...]) -> None:
    done = run(*arguments(full_dir, text_dir, *more))
    assert done.code == 0, done.err
    assert "index_topk_pattern" in done.out and "--hf-overrides" in done.out and "layer evaluations" in done.out


def test_lookups_as_the_objective(run: Run, full_dir: Path) -> None:
    done = run("search", full_dir, "--keep", "5", "--objective", "lookup", "--length", "64", "--windows", "2", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["method"]["objective"] == "lookup"


def test_the_same_command_goes_on(run: Run, full_dir: Path, text_dir: Path, tmp_path: Path) -> None:
    command = arguments(full_dir, text_dir, "--state", tmp_path / "s.json", "--json")
    first, second = run(*command), run(*command)
    assert first.code == second.code == 0 and first.out == second.out
    other = run(*arguments(full_dir, text_dir, "--seed", "1", "--state", tmp_path / "s.json"))
    assert other.code == 2 and "keeps other work" in other.err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--keep", "x"), "--keep is 'x'"),
        (("--keep", "6"), "the model has 6 indexers"),
        (("--blocks", "9"), "--blocks is 9"),
        (("--blocks", "2", "--method", "beam"), "--blocks goes with --method greedy"),
        (("--beam", "0"), "--beam is 0"),
        (("--length", "8"), "nothing is chosen"),
        (("--length", "2K,4K"), "expected one length"),
        (("--windows", "99999"), "give more text"),
        (("--plot", "x.txt"), "ends in one of"),
        (("--out", __file__), "is a file"),
        (("--memory-gib", "-1"), "--memory-gib is -1"),
        (("--tolerance", "-1"), "--tolerance is -1"),
    ],
)
def test_what_it_refuses(run: Run, full_dir: Path, text_dir: Path, more: tuple[str, ...], words: str) -> None:
    base = ["search", full_dir, "--text", text_dir]
    defaults = {"--keep": "2", "--length": "40", "--windows": "3"}
    for name, value in defaults.items():
        base += [name, value] if name not in more else []
    done = run(*base, *more)
    assert done.code == 2 and words in done.err and done.err.strip().count("\n") == 0


def test_a_checkpoint_with_one_indexer_is_refused(run: Run, full_dir: Path, text_dir: Path) -> None:
    done = run("search", f"{full_dir}@FSSSSS", "--keep", "1", "--text", text_dir, "--length", "40", "--windows", "2")
    assert done.code == 2 and "there is nothing to search" in done.err
    short = run("search", f"{full_dir}@FSS", "--keep", "1", "--text", text_dir, "--length", "40", "--windows", "2")
    assert short.code == 2 and "6" in short.err
