"""`indexshare train`: run a recipe, or fine-tune on one's own text, from the start or from where it stopped."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from indexshare.cli.output import print_json, write
from indexshare.cli.own_text import OwnTextOptions, train_on_text

if TYPE_CHECKING:
    from indexshare.train.recipe import Recipe

EXIT_STOPPED = 130


def train(
    recipe: Path | None = None,
    /,
    *,
    own: OwnTextOptions | None = None,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    part: float = 1.0,
    seed: int | None = None,
    device: str = "cpu",
    checkpoint_minutes: float = 5.0,
    tensorboard: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Train a model by a recipe, or fine-tune one on your own text (--text); the same command again goes on where it
    stopped.

    Ctrl+C writes a checkpoint first. The folder of the finished model is printed on standard output. Where a recipe
    starts from another one's model, that one is run first, in the folder it has by itself.

    Parameters
    ----------
    recipe
        A Python file with a function `recipe` that returns the run, such as recipes/nano.py.
    out
        Folder for tokenizer, token files, metrics, checkpoints and the model: runs/NAME unless given, or
        runs/NAME-seedN with --seed N; with --text, NAME is the start's and the text's.
    part
        Share of each stage's tokens to train on, above 0 and at most 1: to try a recipe out.
    seed
        Of the first weights and of all data order, in place of the recipe's.
    device
        Where to train: cpu, cuda, cuda:1, ...
    checkpoint_minutes
        Time between checkpoints.
    tensorboard
        Also write TensorBoard files (needs the extra `tensorboard`).
    quiet
        Show no progress.
    json
        Print one JSON object at the end, in place of the model's folder: the run, its model, its learning curve.
    """
    from indexshare.cli.options import check_device

    _check(part, checkpoint_minutes, seed)
    check_device(device)
    own = own or OwnTextOptions()
    settings = {"checkpoint_minutes": checkpoint_minutes, "tensorboard": tensorboard, "quiet": quiet}
    if own.text is not None:
        if recipe is not None or part != 1.0:
            other = f"the recipe {recipe}" if recipe is not None else f"--part {part}"
            raise ValueError(f"--text does not go with {other}; leave one of them out")
        return train_on_text(own, out=out, seed=seed, device=device, json=json, **settings)
    own.check_unused()
    if recipe is None:
        raise ValueError("nothing to train on; give a recipe, such as recipes/nano.py, or your own text with --text")
    return _train_recipe(recipe, out, part, seed, device, json, settings)


def _train_recipe(
    file: Path, out: Path | None, part: float, seed: int | None, device: str, json: bool, settings: dict[str, Any]
) -> int:
    """Run a recipe, and those before it; the exit code."""
    from indexshare.train.curve import curve_rows
    from indexshare.train.loop import run
    from indexshare.train.recipe import load_recipe

    chosen = load_recipe(file)
    name = chosen.name if seed is None else f"{chosen.name}-seed{seed}"
    folder = Path("runs") / name if out is None else out
    chosen = chosen if seed is None else replace(chosen, seed=seed)
    runs = [*_ancestors(chosen, part), (chosen if part == 1.0 else chosen.scaled(part), folder)]
    again = _again(file, folder, part, seed, device)
    model = None
    for each, where in runs:
        model = run(each, where, device=device, resume_command=again, **settings)
        if model is None:
            if json:
                print_json({"recipe": chosen.name, "run": str(folder), "finished": False, "resume": again})
            return EXIT_STOPPED
    if json:
        done = {"recipe": chosen.name, "run": str(folder), "finished": True, "model": str(model)}
        print_json(done | {"curve": curve_rows(folder)})
    else:
        write(f"{model}\n")
    return 0


def _ancestors(recipe: Recipe, part: float) -> list[tuple[Recipe, Path]]:
    """The runs, and their folders, that must come before this one; ValueError where only a part is wanted of it."""
    from indexshare.train.recipe import load_recipe, missing_ancestor

    file = missing_ancestor(recipe)
    if file is None:
        return []
    if part != 1.0:
        raise ValueError(
            f"recipe {recipe.name!r} starts from {recipe.start}, where there is no model, and --part does not go for "
            f"the recipe that makes it; run `indexshare train {file}` first (a part of it, if a rough start will do)"
        )
    ancestor = load_recipe(file)
    return [*_ancestors(ancestor, part), (ancestor, Path("runs") / ancestor.name)]


def _check(part: float, checkpoint_minutes: float, seed: int | None) -> None:
    """Refuse (ValueError) numbers that mean nothing."""
    if not 0.0 < part <= 1.0:
        raise ValueError(f"--part is {part}; expected a share above 0 and at most 1")
    if not checkpoint_minutes > 0.0:
        raise ValueError(f"--checkpoint-minutes is {checkpoint_minutes}; expected a time above 0")
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"--seed is {seed}; expected zero or more, below 2**63")


def _again(recipe: Path, folder: Path, part: float, seed: int | None, device: str) -> str:
    """The command that goes on with a stopped run."""
    again = ["indexshare", "train", str(recipe), "--out", str(folder)]
    again += ["--part", str(part)] if part != 1.0 else []
    again += ["--seed", str(seed)] if seed is not None else []
    again += ["--device", device] if device != "cpu" else []
    return shlex.join(again)
