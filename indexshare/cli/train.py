"""`indexshare train`: run a recipe, from the start or from where it stopped."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from indexshare.cli.output import write

if TYPE_CHECKING:
    from indexshare.train.recipe import Recipe

EXIT_STOPPED = 130


def train(
    recipe: Path,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    part: float = 1.0,
    seed: int | None = None,
    device: str = "cpu",
    checkpoint_minutes: float = 5.0,
    tensorboard: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Train a model by a recipe; the same command again goes on where it stopped.

    Ctrl+C writes a checkpoint first. The folder of the finished model is printed on standard output. Where a recipe
    starts from another one's model, that one is run first, in the folder it has by itself.

    Parameters
    ----------
    recipe
        A Python file with a function `recipe` that returns the run, such as recipes/nano.py.
    out
        Folder for tokenizer, token files, metrics, checkpoints and the model: runs/NAME unless given, or
        runs/NAME-seedN with --seed N.
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
    """
    from indexshare.cli.completion import check_device
    from indexshare.train.loop import run
    from indexshare.train.recipe import load_recipe

    _check(part, checkpoint_minutes, seed)
    check_device(device)
    chosen = load_recipe(recipe)
    name = chosen.name if seed is None else f"{chosen.name}-seed{seed}"
    folder = Path("runs") / name if out is None else out
    chosen = chosen if seed is None else replace(chosen, seed=seed)
    runs = [*_ancestors(chosen, part), (chosen if part == 1.0 else chosen.scaled(part), folder)]
    again = _again(recipe, folder, part, seed, device)
    for each, where in runs:
        model = run(
            each, where, device=device, checkpoint_minutes=checkpoint_minutes, tensorboard=tensorboard, quiet=quiet,
            resume_command=again,
        )  # fmt: skip
        if model is None:
            return EXIT_STOPPED
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
