"""The training loop: the only one. Updates, evaluations, checkpoints, and a clean stop at any moment."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

from indexshare.checkpoint.device import usable_device
from indexshare.checkpoint.lock import folder_lock
from indexshare.train.progress import Reporter, duration
from indexshare.train.recipe import Recipe, prepare
from indexshare.train.record import describe_data, export
from indexshare.train.stopping import StopRequested
from indexshare.train.trainer import Trainer
from indexshare.train.workers import compute_threads


def run(
    recipe: Recipe,
    out_dir: str | Path,
    *,
    device: str = "cpu",
    workers: int | None = None,
    checkpoint_minutes: float = 5.0,
    tensorboard: bool = False,
    quiet: bool = False,
    resume_command: str = "the same command",
    held: bool = False,
) -> Path | None:
    """Train a recipe, resuming from the newest checkpoint in `out_dir` if there is one.

    Args:
        recipe: the run.
        out_dir: gets tokenizer and token files (`data/`), `metrics.jsonl`, checkpoints, and `model/` at the end.
        device: of the model.
        workers: micro-batches run side by side; by default one per core on the CPU, one elsewhere.
        checkpoint_minutes: between checkpoints.
        tensorboard: also write TensorBoard files.
        quiet: no progress.
        resume_command: named in the message after a stop.
        held: the caller holds the folder's lock.

    Returns:
        The directory of the exported model, or None when the run was stopped before its end.

    Raises:
        ValueError: the recipe, its data or the checkpoint cannot be used, or another process trains in the folder.
        FloatingPointError: the loss is not a number; the last good checkpoint is kept.
        OSError: a checkpoint could not be written; the one before it is kept.
    """
    usable_device(device)
    directory = Path(out_dir)
    with nullcontext() if held else folder_lock(directory), compute_threads(device, workers) as side_by_side:
        data = prepare(recipe, directory / "data")
        trainer = Trainer(recipe, directory, data, device, side_by_side)
        reporter = Reporter(directory, trainer.step, tensorboard=tensorboard, quiet=quiet)
        try:
            for line in (f"{recipe.name}: {describe_data(data)}", *data.notes, *trainer.notes):
                reporter.say(line)
            if trainer.finished:
                reporter.say(f"finished before, at step {trainer.step}; the model is written again")
            elif trainer.step:
                reporter.say(f"resumed at step {trainer.step}, stage {trainer.stage.name}")
            with StopRequested() as stop:
                _train(trainer, reporter, stop, checkpoint_minutes * 60)
            if not trainer.finished:
                reporter.say(f"stopped at step {trainer.step}, checkpoint written; resume with {resume_command}")
                return None
            return export(trainer, directory / "model")
        finally:
            reporter.close()


def _train(trainer: Trainer, reporter: Reporter, stop: StopRequested, checkpoint_seconds: float) -> None:
    rate, saved_at, saved_step, stage_name = 0.0, time.monotonic(), -1, ""
    if trainer.step == 0 and trainer.recipe.evaluate_first:
        _evaluate(trainer, reporter)
    while not trainer.finished and not stop.requested:
        started = time.monotonic()
        metrics = trainer.advance()
        stage = trainer.stage
        if stage.name != stage_name:
            rate, stage_name = 0.0, stage.name
        speed = stage.batch_tokens / (time.monotonic() - started)
        rate = speed if rate == 0.0 else 0.9 * rate + 0.1 * speed
        metrics |= {"tokens": float(trainer.tokens), "tokens_per_second": speed}
        reporter.record({"step": trainer.step, "stage": stage.name, **metrics})
        last = trainer.stage_step == stage.steps
        if last or trainer.stage_step % trainer.recipe.evaluate_every == 0:
            _evaluate(trainer, reporter)
        if last and stage.name in trainer.recipe.keep:
            export(trainer, trainer.directory / "stages" / stage.name)
        reporter.progress(_line(trainer, metrics, rate))
        if last or time.monotonic() - saved_at >= checkpoint_seconds:
            trainer.save()
            saved_at, saved_step = time.monotonic(), trainer.step
    if stop.requested and saved_step != trainer.step:
        trainer.save()


def _evaluate(trainer: Trainer, reporter: Reporter) -> None:
    bits, stage = trainer.evaluate(), trainer.stage.name
    reporter.record({"step": trainer.step, "stage": stage, "held_out_bits_per_byte": bits})
    reporter.say(f"step {trainer.step} {stage}: held-out {bits:.4f} bits per byte")


def _line(trainer: Trainer, metrics: dict[str, float], rate: float) -> str:
    stage = trainer.stage
    left = (stage.steps - trainer.stage_step) * stage.batch_tokens / rate
    parts = [f"{stage.name} {trainer.stage_step}/{stage.steps}", f"loss {metrics['loss']:.4f}"]
    parts += [f"{key} {value:.4f}" for key, value in metrics.items() if key.endswith("_loss")]
    return "  ".join([*parts, f"{rate:,.0f} tokens/s", f"{duration(left)} left in stage"])
