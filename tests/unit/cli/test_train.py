"""`indexshare train`: a recipe from start to a model that generates, the folder it prints, and mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexshare.cli import options
from indexshare.train import loop

RECIPE = """
from indexshare.config.presets import preset
from indexshare.data.corpus import TextFolder
from indexshare.train.recipe import Recipe
from indexshare.train.stages import pretrain

def recipe():
    stage = pretrain(tokens=512, sequence_length=64, batch_tokens=128, mixture={"text": 1.0})
    return Recipe(
        name="toy",
        model=preset("tiny").replace(vocab_size=320),
        text=TextFolder(path="TEXT", held_out=0.3),
        stages=(stage,),
        held_out_windows=1,
        evaluate_every=100,
    )
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A run of four updates on twelve small files."""
    text = tmp_path / "text"
    text.mkdir()
    for number in range(12):
        body = "".join(f"def f{number}_{n}(x):\n    return x + {n * number}\n" for n in range(20))
        (text / f"file{number}.py").write_text(body)
    path = tmp_path / "toy.py"
    path.write_text(RECIPE.replace("TEXT", str(text)))
    return path


def test_a_recipe_becomes_a_model(run: Callable[..., Any], recipe: Path, tmp_path: Path) -> None:
    result = run("train", recipe, "--out", tmp_path / "out", "--quiet")
    assert result.code == 0, result.err
    model = Path(result.out.strip())
    assert model.parent == tmp_path / "out"
    generated = run("generate", "def f", "--model", model, "--max-tokens", 4)
    assert generated.code == 0, generated.err
    assert run("info", model).code == 0


def test_a_part_of_a_recipe_and_the_default_folder(
    run: Callable[..., Any], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("train", recipe, "--part", 0.25, "--quiet")
    assert result.out.strip() == str(Path("runs/toy/model"))
    steps = (tmp_path / "runs/toy/metrics.jsonl").read_text().count('"loss"')
    assert steps == 1


def test_a_seed_of_its_own_goes_to_a_folder_of_its_own(
    run: Callable[..., Any], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = []
    for seed in (0, 1):
        result = run("train", recipe, "--part", 0.25, "--seed", seed, "--quiet")
        assert result.out.strip() == str(Path(f"runs/toy-seed{seed}/model"))
        folder = tmp_path / result.out.strip()
        assert json.loads((folder / "training.json").read_text())["seed"] == seed
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]
    run("train", recipe, "--part", 0.25, "--quiet")
    assert (tmp_path / "runs/toy/model/model.safetensors").read_bytes() == weights[0], "the recipe's own seed is 0"
    again = run("train", recipe, "--part", 0.25, "--seed", 1, "--out", "runs/toy")
    assert again.code == 2 and "was trained with seed 0, this run has seed 1; use another folder" in again.err


def test_the_recipe_that_makes_the_start_is_run_first(
    run: Callable[..., Any], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = recipe.read_text().replace('name="toy"', 'name="child", start="runs/toy/model", ancestor="toy.py"')
    child = tmp_path / "child.py"
    child.write_text(text)
    part = run("train", child, "--part", 0.5, "--quiet")
    assert part.code == 2 and "run `indexshare train toy.py` first" in part.err
    assert run("train", child, "--quiet").out.strip() == str(Path("runs/child/model"))
    assert json.loads((tmp_path / "runs/child/model/training.json").read_text())["start"] == "runs/toy/model"
    base = tmp_path / "runs/toy/model/model.safetensors"
    before = base.stat().st_mtime_ns
    assert run("train", child, "--part", 0.5, "--out", "other", "--quiet").code == 0, "the start is there now"
    assert base.stat().st_mtime_ns == before


def test_a_stop_names_the_command_that_goes_on(
    run: Callable[..., Any], recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def stopped(*arguments: object, **settings: object) -> None:
        seen.update(settings)

    monkeypatch.setattr(loop, "run", stopped)
    monkeypatch.setattr(options, "check_device", lambda name: None)
    result = run("train", recipe, "--out", tmp_path / "o ut", "--part", 0.5)
    assert (result.code, result.out) == (130, "")
    same = f"indexshare train {recipe} --out '{tmp_path / 'o ut'}'"
    assert seen["resume_command"] == f"{same} --part 0.5"
    run("train", recipe, "--out", tmp_path / "o ut", "--device", "cuda:1")
    assert seen["resume_command"] == f"{same} --device cuda:1"
    run("train", recipe, "--out", tmp_path / "o ut", "--seed", 3)
    assert seen["resume_command"] == f"{same} --seed 3"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--part", 0), "--part is 0"),
        (("--part", 2), "--part is 2"),
        (("--seed", -1), "--seed is -1"),
        (("--seed", 2**70), "--seed is 1180591620717411303424; expected zero or more, below 2**63"),
        (("--checkpoint-minutes", 0), "--checkpoint-minutes is 0"),
        (("--device", "cuda:77"), "CUDA devices"),
    ],
)
def test_mistakes(run: Callable[..., Any], recipe: Path, extra: tuple[object, ...], message: str) -> None:
    result = run("train", recipe, *extra)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_files_that_are_no_recipe(run: Callable[..., Any], tmp_path: Path) -> None:
    assert "does not exist; give a Python file" in run("train", tmp_path / "nothing.py").err
    (tmp_path / "empty.py").write_text("x = 1\n")
    result = run("train", tmp_path / "empty.py")
    assert result.code == 2
    assert "no function `recipe`" in result.err
