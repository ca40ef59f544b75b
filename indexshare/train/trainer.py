"""The state of a training run: its stage, model, optimizer and place in the data; one update at a time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from indexshare.adapt.low_rank import add_low_rank, is_low_rank, merged, split_low_rank
from indexshare.checkpoint.load import load_model
from indexshare.checkpoint.surgery import every_indexer
from indexshare.data.batch import Batch
from indexshare.data.positions import stretched_positions
from indexshare.data.sources import Mixture
from indexshare.model.glm import GlmMoeDsa
from indexshare.train.averaging import WeightAverage
from indexshare.train.checkpoint import load_checkpoint, save_checkpoint
from indexshare.train.evaluate import held_out_bits_per_byte
from indexshare.train.history import History
from indexshare.train.objectives import part_of
from indexshare.train.optim import MixedOptimizer, is_indexer
from indexshare.train.recipe import PreparedData, Recipe, fast_dtype, start_directory
from indexshare.train.stages import Stage
from indexshare.train.steps import train_batch
from indexshare.train.workers import Workers

_SEED_STRIDE = 7919  # between the data seeds of two stages


class Trainer:
    """The state of a run: stage, update, model, optimizer and data position.

    Args:
        recipe: the run.
        directory: everything the run writes goes here.
        data: from `prepare`.
        device: of the model.
        workers: micro-batches run side by side (see `Workers`).
    """

    def __init__(
        self, recipe: Recipe, directory: Path, data: PreparedData, device: str = "cpu", workers: int = 1
    ) -> None:
        self.recipe, self.directory, self.data, self.device = recipe, directory, data, device
        self.stage_index, self.stage_step, self.step, self.tokens = 0, 0, 0, 0
        self.dtype: Literal["bfloat16", "float32"] = fast_dtype(device) if recipe.dtype == "auto" else recipe.dtype
        self._workers = Workers(workers)
        self.notes: list[str] = []  # about what was found in the folder, for people
        self.saved_step: int | None = None  # of the newest checkpoint
        torch.manual_seed(recipe.seed)
        saved = load_checkpoint(directory, self.notes.append)
        if saved is None:
            self.history = History.begin(recipe)
            self.history.enter(self.stage)
            self._enter_stage(self._starting_weights())
        else:
            self._restore(saved)

    def _starting_weights(self) -> dict[str, Tensor] | None:
        """Those of the model that the recipe starts from, with an indexer in every layer; None for random ones."""
        if self.recipe.start is None:
            return None
        model = load_model(start_directory(self.recipe), dtype=self.dtype, device=self.device)
        return every_indexer(model.state_dict(), model.config.share_plan)

    @property
    def stage(self) -> Stage:
        """The stage being trained."""
        return self.recipe.stages[self.stage_index]

    @property
    def _data_stage(self) -> int:
        """What batches and positions of the stage are drawn by."""
        return self.recipe.stages_before + self.stage_index

    @property
    def finished(self) -> bool:
        """Whether all stages are done."""
        last = len(self.recipe.stages) - 1
        return self.stage_index == last and self.stage_step >= self.stage.steps

    def advance(self) -> dict[str, float]:
        """One update; its metrics. Enters the next stage first when this one is done."""
        if self.stage_step >= self.stage.steps:
            self.stage_index, self.stage_step = self.stage_index + 1, 0
            self.history.enter(self.stage)
            self._enter_stage(merged(self.model.state_dict()))
        stage = self.stage
        metrics = train_batch(self.model, self.optimizer, stage, self._batch(), self.stage_step, self._workers)
        metrics |= self.optimizer.clip()
        bad = [f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value)]
        if bad:  # before the update, so that no checkpoint can hold what follows from it
            raise FloatingPointError(
                f"{', '.join(bad)} at step {self.step + 1} (update {self.stage_step + 1} of stage {stage.name!r}); "
                + self._way_back()
            )
        factor = stage.schedule.factor(self.stage_step, stage.steps)
        self.optimizer.step(factor)
        self.stage_step, self.step = self.stage_step + 1, self.step + 1
        self._average()
        self.tokens += stage.batch_tokens
        return metrics | {"lr_factor": factor}

    def _average(self) -> None:
        """Where the stage averages, take the weights of this update, and after the last one the mean in their place."""
        if self.stage.averages(self.stage_step):
            self.average.add(self.optimizer.masters)
            if self.stage_step == self.stage.steps:
                self.optimizer.replace(self.average.mean)

    def _way_back(self) -> str:
        """What is left to go on from after an update that failed."""
        if self.saved_step is None:
            return "no checkpoint had been written yet: lower the learning rate and start again"
        return (
            f"the last good checkpoint is kept in {self.directory}, of step {self.saved_step}: lower the learning rate "
            "and resume"
        )

    def _batch(self) -> Batch:
        """The rows of this update, with stretched rotary positions where the stage has them."""
        stage = self.stage
        batch = self.mixture.batch(stage.rows, stage.sequence_length)
        if stage.position_reach:
            seed = (self.recipe.seed, self._data_stage, self.stage_step)
            positions = stretched_positions(stage.rows, stage.sequence_length, stage.position_reach, seed=seed)
            batch = replace(batch, positions=positions)
        return batch.to(self.device)

    def evaluate(self) -> float:
        """Bits per byte on held-out windows of the stage's length, attending as the stage does."""
        return held_out_bits_per_byte(
            self.model,
            self.data.held_out,
            length=min(self.stage.sequence_length, (len(self.data.held_out) - 1) // 2),
            windows=self.recipe.held_out_windows,
            full_attention=self.stage.attention == "full",
            workers=self._workers,
        )

    def save(self) -> None:
        """Write a checkpoint."""
        state = {
            "recipe": self.recipe.name,
            "seed": self.recipe.seed,
            "data_hash": self.data.train.data_hash,
            "sizes": self._sizes(),
            "position": {
                "stage": self.stage.name,
                "stage_step": self.stage_step,
                "step": self.step,
                "tokens": self.tokens,
            },
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state(),
            "data": self.mixture.state(),
            "rng": torch.get_rng_state(),
            "history": self.history.state(),
        }
        save_checkpoint(self.directory, state)
        self.saved_step = self.step

    def _sizes(self) -> list[list[str | int]]:
        """Name, tokens, row length, update and layers of every stage begun: a resumed run must have the same."""
        begun = self.recipe.stages[: self.stage_index + 1]
        depths = [self.recipe.stage_model(s).num_hidden_layers for s in begun]
        return [
            [s.name, s.tokens, s.sequence_length, s.batch_tokens, depth] for s, depth in zip(begun, depths, strict=True)
        ]

    def _restore(self, saved: dict[str, Any]) -> None:
        if saved["recipe"] != self.recipe.name or saved["data_hash"] != self.data.train.data_hash:
            raise ValueError(
                f"the checkpoint in {self.directory} is of recipe {saved['recipe']!r} on data "
                f"{saved['data_hash'][:12]}, this run is {self.recipe.name!r} on "
                f"{self.data.train.data_hash[:12]}; use another folder"
            )
        if saved.get("seed", self.recipe.seed) != self.recipe.seed:
            raise ValueError(
                f"the checkpoint in {self.directory} was trained with seed {saved['seed']}, this run has seed "
                f"{self.recipe.seed}; use another folder"
            )
        position = saved["position"]
        names = [stage.name for stage in self.recipe.stages]
        if position["stage"] not in names:
            raise ValueError(f"the checkpoint stands in stage {position['stage']!r}, the recipe has {names}")
        self.stage_index = names.index(position["stage"])
        for old, new in zip(saved.get("sizes", []), self._sizes(), strict=False):
            if old != new[: len(old)]:  # older checkpoints do not say how many layers
                raise ValueError(
                    f"the checkpoint in {self.directory} trained stage {old[0]!r} with {old[1:]} (tokens, row length, "
                    f"tokens per update, layers), the recipe now says {new[1:]}; resume with the same --part and "
                    "recipe, or use another folder (stages that have not begun may change)"
                )
        self.stage_step, self.step, self.tokens = position["stage_step"], position["step"], position["tokens"]
        self.saved_step = self.step
        if self.recipe.dtype == "auto":
            self.dtype = _dtype_of(saved["model"])
        self._enter_stage(saved["model"])
        begun = self.stage_index + 1
        self.history = History(saved["history"]) if "history" in saved else History.assumed(self.recipe, begun)
        self.notes += self.history.resume(self.recipe, self.stage_step, self.directory)
        self.optimizer.load_state_dict(saved["optimizer"])
        if "average" in saved:  # older checkpoints have none
            self.average.restore(saved["average"], self.device)
        self.mixture.restore(saved["data"])
        torch.set_rng_state(saved["rng"])

    def _enter_stage(self, weights: dict[str, Tensor] | None) -> None:
        """Build the stage's model from the weights of the one before, its optimizer and its data stream."""
        config = self.recipe.stage_model(self.stage)
        model = GlmMoeDsa(config).initialise(self.recipe.seed)  # which layers that join keep
        model = model.to(device=self.device, dtype=getattr(torch, self.dtype))
        plain, thin = split_low_rank(weights or {})
        if weights is not None:
            self._load(model, plain)
        rank = self.stage.indexer_rank
        if rank is not None:
            add_low_rank(model, rank, self.recipe.seed)
            model.load_state_dict(thin, strict=False)  # of a checkpoint; none where the stage begins
        for name, parameter in model.named_parameters():
            plain_indexer = rank is not None and is_indexer(name) and not is_low_rank(name)
            parameter.requires_grad_(self.stage.trains(part_of(name)) and not plain_indexer)
        self.model: GlmMoeDsa = model.train()
        self.optimizer = MixedOptimizer(model, config, self.stage.optim)
        self.average = WeightAverage()
        seed = self.recipe.seed + _SEED_STRIDE * self._data_stage
        self.mixture: Mixture = self.data.mixture(self.stage, seed)

    def _load(self, model: GlmMoeDsa, weights: dict[str, Tensor]) -> None:
        """Fill a stage's model: layers that join keep their initial weights, indexers of layers that are Shared from
        now on are dropped, and nothing else.
        """
        joined = [name for name in model.state_dict() if name not in weights and self._joins(name)]
        wanted = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in joined}
        wrong = [name for name in weights if name not in wanted and not is_indexer(name)]
        wrong += [name for name, shape in wanted.items() if name not in weights or weights[name].shape != shape]
        if wrong:
            raise ValueError(
                f"the weights that recipe {self.recipe.name!r} goes on from, in "
                f"{self.directory if self.recipe.start is None else self.recipe.start}, are of another model: "
                f"{len(wrong)} tensors are missing, surplus or of another shape, {wrong[0]} for instance; "
                "use another folder"
            )
        model.load_state_dict({name: weights[name] for name in wanted}, strict=False)

    def _joins(self, name: str) -> bool:
        """Whether a weight belongs to a trunk layer that the stage before this one did not have."""
        if self.stage_index == 0 or not name.startswith("layers."):
            return False
        before = self.recipe.stage_model(self.recipe.stages[self.stage_index - 1]).num_hidden_layers
        return int(name.split(".")[1]) >= before


def _dtype_of(weights: dict[str, Tensor]) -> Literal["bfloat16", "float32"]:
    """What a checkpoint's matrices are in: a run goes on in the type that it began in, on any machine."""
    matrix = next(tensor for tensor in weights.values() if tensor.ndim >= 2)
    return "bfloat16" if matrix.dtype == torch.bfloat16 else "float32"
