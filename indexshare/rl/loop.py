"""Runs of reinforcement learning from start to end: progress, measurements, checkpoints, files of trajectories."""

from __future__ import annotations

import json
import time
from pathlib import Path

from indexshare.checkpoint.lock import folder_lock
from indexshare.checkpoint.save import save_model
from indexshare.rl.files import read_trajectories, write_trajectories
from indexshare.rl.recipe import Recipe
from indexshare.rl.trainer import Trainer
from indexshare.rl.trajectory import Trajectory
from indexshare.text.files import replacing
from indexshare.text.tokenizer import Tokenizer
from indexshare.train.progress import Reporter, duration
from indexshare.train.stopping import StopRequested
from indexshare.train.workers import compute_threads


def run(
    recipe: Recipe,
    out_dir: str | Path,
    *,
    workers: int | None = None,
    checkpoint_minutes: float = 5.0,
    tensorboard: bool = False,
    quiet: bool = False,
    resume_command: str = "the same command",
) -> Path | None:
    """Run a recipe, from the newest checkpoint in the folder if there is one.

    Args:
        recipe: the run.
        out_dir: gets `metrics.jsonl`, checkpoints, `rollouts/`, and `model/` at the end.
        workers: passes of an update side by side; by default one per core.
        checkpoint_minutes: between checkpoints.
        tensorboard: also write TensorBoard files.
        quiet: no progress.
        resume_command: named in the message after a stop.

    Returns:
        The directory of the model, or None when the run was stopped before its end.

    Raises:
        ValueError: the recipe or the checkpoint cannot be used, or another process is at work in the folder.
        FloatingPointError: a loss is not a number; the last checkpoint is kept.
    """
    directory = Path(out_dir)
    with folder_lock(directory), compute_threads("cpu", workers) as side_by_side:
        trainer = Trainer(recipe, directory, side_by_side)
        reporter = Reporter(directory, trainer.step, tensorboard=tensorboard, quiet=quiet)
        try:
            for line in trainer.notes:
                reporter.say(line)
            if trainer.step:
                reporter.say(f"resumed at update {trainer.step}, phase {trainer.phase}")
            with StopRequested() as stop:
                _train(trainer, reporter, stop, checkpoint_minutes * 60)
            if not trainer.finished:
                reporter.say(f"stopped at update {trainer.step}, checkpoint written; resume with {resume_command}")
                return None
            return _export(trainer, directory / "model")
        finally:
            reporter.close()


def _train(trainer: Trainer, reporter: Reporter, stop: StopRequested, checkpoint_seconds: float) -> None:
    saved_at, saved_step, recipe = time.monotonic(), -1, trainer.recipe
    while not trainer.finished and not stop.requested:
        phase, started = trainer.phase, time.monotonic()
        if phase == "policy" and trainer.policy_steps == 0:
            _measure(trainer, reporter)
        metrics = trainer.advance()
        metrics["seconds"] = time.monotonic() - started
        reporter.record({"step": trainer.step, "stage": phase, **metrics})
        reporter.progress(_line(trainer, phase, metrics))
        if phase == "policy":
            if recipe.keep_rollouts_every and (trainer.policy_steps - 1) % recipe.keep_rollouts_every == 0:
                keep(trainer.learned, trainer.directory, trainer.step, recipe.task.tokenizer)
            if trainer.policy_steps % recipe.evaluate_every == 0 or trainer.finished:
                _measure(trainer, reporter)
        if trainer.finished or trainer.phase != phase or time.monotonic() - saved_at >= checkpoint_seconds:
            trainer.save()
            saved_at, saved_step = time.monotonic(), trainer.step
    if stop.requested and saved_step != trainer.step:
        trainer.save()


def _measure(trainer: Trainer, reporter: Reporter) -> None:
    found = trainer.measure()
    reporter.record({"step": trainer.step, "stage": trainer.phase, **found})
    reporter.say(
        f"update {trainer.step}: held-out success {found['sampled']:.3f} sampled, {found['greedy']:.3f} greedy"
    )


def _line(trainer: Trainer, phase: str, metrics: dict[str, float]) -> str:
    if phase == "warmup":
        return f"warmup {trainer.warm_steps}  demonstration loss {metrics['demonstration_loss']:.4f}"
    done, steps = (
        (trainer.policy_steps, trainer.recipe.steps)
        if phase == "policy"
        else (trainer.value_steps, trainer.recipe.value_steps)
    )
    shown = ("reward", "policy_loss", "value_loss", "entropy", "logprob_gap")
    parts = [f"{name} {metrics[name]:.4g}" for name in shown if name in metrics]
    left = duration((steps - done) * metrics["seconds"])
    return "  ".join([f"{phase} {done}/{steps}", *parts, f"{left} left"])


def keep(trajectories: list[Trajectory], directory: Path, step: int, tokenizer: Tokenizer) -> Path:
    """Write the trajectories of an update, with the texts of their tokens."""
    used = {int(token) for each in trajectories for segment in each.segments for token in segment.tokens}
    texts = {token: tokenizer.decode([token]) for token in sorted(used)}
    return write_trajectories(directory / "rollouts" / f"{step:06d}.safetensors", trajectories, texts)


def _export(trainer: Trainer, directory: Path) -> Path:
    """The policy with its tokenizer, and how it was trained."""
    save_model(trainer.policy, directory)
    trainer.recipe.task.tokenizer.save(directory)
    record = trainer.recipe.record() | {"updates": trainer.step, "version": trainer.version}
    with replacing(directory / "training.json") as temporary:
        temporary.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    return directory


def rollout_only(recipe: Recipe, out_dir: str | Path) -> Path:
    """Roll out one batch with the newest weights of a run (or its first), train nothing, and write the trajectories."""
    directory = Path(out_dir)
    with folder_lock(directory), compute_threads("cpu", None) as workers:
        trainer = Trainer(recipe, directory, workers)
        return keep(trainer.rollouts.collect(recipe.batch), directory, trainer.step, recipe.task.tokenizer)


def replay(recipe: Recipe, out_dir: str | Path, file: str | Path) -> dict[str, float]:
    """One update from a file of trajectories in place of rollouts, with the newest weights of a run; nothing is saved.

    Raises:
        ValueError: the run still learns from demonstrations, or the file cannot be used.
    """
    directory = Path(out_dir)
    trajectories, _ = read_trajectories(file)
    with folder_lock(directory), compute_threads("cpu", None) as workers:
        trainer = Trainer(recipe, directory, workers)
        if not trainer.warm:
            raise ValueError(f"the run in {directory} has no policy to learn by rollouts yet; run the recipe first")
        return trainer.learn(trajectories)[0]
