"""`indexshare rl`: run a recipe of reinforcement learning, and look at trajectories."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from indexshare.cli.output import note, print_json, write
from indexshare.text.files import check_can_write

if TYPE_CHECKING:
    from indexshare.rl.recipe import Recipe

EXIT_STOPPED = 130
rl = App(name="rl", help="Reinforcement learning: run a recipe, or look at trajectories (`rl view`).")


@rl.default
def train(
    recipe: Path,
    /,
    *,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    seed: int | None = None,
    steps: int | None = None,
    debug_rollout_only: Annotated[bool, Parameter(negative="")] = False,
    replay: Path | None = None,
    checkpoint_minutes: float = 5.0,
    tensorboard: Annotated[bool, Parameter(negative="")] = False,
    quiet: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Train a policy by a recipe; the same command again goes on where it stopped.

    Ctrl+C writes a checkpoint first. The folder of the finished model is printed on standard output.

    Parameters
    ----------
    recipe
        A Python file with a function `recipe`, such as recipes/rl_sort.py.
    out
        Folder for metrics, checkpoints, trajectories and the model: runs/NAME unless given, or runs/NAME-seedN with
        --seed N.
    seed
        In place of the recipe's.
    steps
        Updates of the policy, in place of the recipe's.
    debug_rollout_only
        Roll out one batch with the newest weights of the run, write its file of trajectories, and train nothing.
    replay
        Learn once from this file of trajectories in place of rollouts; print the metrics, and save nothing.
    checkpoint_minutes
        Time between checkpoints.
    tensorboard
        Also write TensorBoard files (needs the extra `tensorboard`).
    quiet
        Show no progress.
    """
    from indexshare.rl import loop

    if debug_rollout_only and replay is not None:
        raise ValueError("--debug-rollout-only does not go with --replay; leave one of them out")
    if not checkpoint_minutes > 0.0:
        raise ValueError(f"--checkpoint-minutes is {checkpoint_minutes}; expected a time above 0")
    chosen, folder, again = _chosen(recipe, out, seed, steps)
    if debug_rollout_only:
        write(f"{loop.rollout_only(chosen, folder)}\n")
        return 0
    if replay is not None:
        print_json({"recipe": chosen.name, "file": str(replay), "metrics": loop.replay(chosen, folder, replay)})
        return 0
    settings = {"checkpoint_minutes": checkpoint_minutes, "tensorboard": tensorboard, "quiet": quiet}
    model = loop.run(chosen, folder, resume_command=again, **settings)  # type: ignore[arg-type]
    if model is None:
        return EXIT_STOPPED
    write(f"{model}\n")
    return 0


def _chosen(file: Path, out: Path | None, seed: int | None, steps: int | None) -> tuple[Recipe, Path, str]:
    """The recipe with what the command says in its place, the run's folder, and the command that goes on with it."""
    from indexshare.rl.recipe import load_recipe

    recipe = load_recipe(file)
    folder = out or Path("runs") / (recipe.name if seed is None else f"{recipe.name}-seed{seed}")
    again = ["indexshare", "rl", str(file), "--out", str(folder)]
    if seed is not None:
        recipe, again = replace(recipe, seed=seed), [*again, "--seed", str(seed)]
    if steps is not None:
        recipe, again = replace(recipe, steps=steps), [*again, "--steps", str(steps)]
    return recipe, folder, shlex.join(again)


@rl.command
def view(
    file: Path,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path("trajectories.html"),
    tokenizer: Path | None = None,
    most: int = 64,
) -> None:
    """Write a page that shows trajectories token by token, coloured by source, mask, advantage, value or ratio.

    The page is one file that needs nothing else.

    Parameters
    ----------
    file
        A file of trajectories, such as runs/rl-sort/rollouts/000001.safetensors.
    out
        The page to write.
    tokenizer
        Directory of the tokenizer, where the file does not hold the tokens' texts.
    most
        Trajectories to show, from the first.
    """
    from indexshare.rl.files import read_trajectories
    from indexshare.rl.viewer import write_page
    from indexshare.text.tokenizer import Tokenizer

    if most < 1:
        raise ValueError(f"--most is {most}; expected at least 1")
    check_can_write(out, replaces=(b"<!doctype html>",))
    trajectories, texts = read_trajectories(file)
    if tokenizer is not None:
        known = Tokenizer.load(tokenizer)
        used = {int(token) for each in trajectories for segment in each.segments for token in segment.tokens}
        texts = {token: known.decode([token]) for token in sorted(used)}
    write_page(out, trajectories[:most], texts, title=f"{file.name}: {len(trajectories)} trajectories")
    note(f"wrote {out}")
