"""Indexers that learn the attention of all layers they serve: the run for any checkpoint and any plan.

Source: IndexCache (arXiv 2603.12201), section 4: a warm-up of the indexers alone over all earlier tokens with all
else standing still and attention in full, then a joint stage in which the model learns from text under the selection
and indexers from the selected tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from indexshare.config.fields import check_fields
from indexshare.config.model import ModelConfig
from indexshare.config.share_plan import SharePlan
from indexshare.config.shipped import model_directory, shipped_models
from indexshare.data.corpus import TextFolder, anywhere
from indexshare.data.packages import TrainingText, text_from_record
from indexshare.eval.held_out import training_text
from indexshare.sharing.windows import check_shows_attention, check_window
from indexshare.train.history import training_record
from indexshare.train.objectives import Balance, Draft, Indexer, NextToken, Objective
from indexshare.train.optim import OptimConfig, Schedule
from indexshare.train.own_text import peak_rate, position_reach
from indexshare.train.recipe import Recipe
from indexshare.train.stages import Stage, index_share, indexer_warmup

_QUERIES = 128  # of a row, from which indexers learn
_WARM_RATE, _JOINT_RATE = 5e-3, 1.5e-3  # of the indexers
_TRUNK_PART = 0.25  # of the highest rate that the model was trained with


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What is asked for.

    Attributes:
        start: shipped model or model directory.
        plan: Full and Shared layers of the result.
        text, patterns: folder (or file) and globs of its files; the model's own training text where None.
        warmup_tokens, joint_tokens: of the two stages; zero leaves one out.
        length: tokens of a row; rows: rows of an update.
        rate: factor of all learning rates.
        form: of the loss, as the objective `Indexer` has it.
        layer_weights: as there.
        rank: of low-rank training of the indexers, None for their matrices themselves.
        lookups: part of the rows of the joint stage that are generated lookups.
        seed: of the order of the text.
        dtype: of the parameters.

    Raises:
        ValueError: a value out of range, no such model, or a plan of another length.
    """

    start: str
    plan: SharePlan
    text: str | None = None
    patterns: tuple[str, ...] = ()
    warmup_tokens: int = 1 << 20
    joint_tokens: int = 4 << 20
    length: int = 2048
    rows: int = 4
    rate: float = 1.0
    form: Literal["each", "mean"] = "each"
    layer_weights: tuple[float, ...] = ()
    rank: int | None = None
    lookups: float = 0.0
    seed: int = 0
    dtype: Literal["bfloat16", "float32"] = "float32"

    def __post_init__(self) -> None:
        check_fields(self)
        if min(self.warmup_tokens, self.joint_tokens) < 0 or not self.warmup_tokens + self.joint_tokens:
            raise ValueError(
                f"--warmup-tokens is {self.warmup_tokens} and --tokens {self.joint_tokens}; expected zero or more, and "
                "not both zero"
            )
        if self.rows < 1 or not self.rate > 0 or not 0 <= self.lookups < 1:
            raise ValueError(
                f"--rows is {self.rows}, --rate {self.rate:g}, --lookups {self.lookups:g}; expected 1 row or more, a "
                "factor above 0, and a part from 0 to below 1"
            )
        config = self.config
        if self.plan.num_layers != config.num_hidden_layers:
            raise ValueError(
                f"the pattern {self.plan.pattern} has {self.plan.num_layers} letters, the model "
                f"{config.num_hidden_layers} layers; give one letter for each layer"
            )
        check_window(config, self.length)
        check_shows_attention(config)
        widest = config.index_head_dim
        if self.rank is not None and not 1 <= self.rank <= widest:
            raise ValueError(
                f"--lora is {self.rank}; expected a rank from 1 to {widest}, the width of the indexer's keys"
            )

    @property
    def directory(self) -> Path:
        """Of the model to start from."""
        return model_directory(self.start)

    @property
    def config(self) -> ModelConfig:
        """Of the model to start from."""
        return ModelConfig.load(self.directory)

    def recipe(self) -> Recipe:
        """The run.

        Raises:
            ValueError: there is no text, or the stages cannot be.
        """
        model = self.config.replace(indexer_types=self.plan.types)
        stages = [self._warmup(model)] if self.warmup_tokens else []
        stages += [self._joint(model)] if self.joint_tokens else []
        steps = sum(stage.steps for stage in stages)
        return Recipe(
            name=f"distill-{self.plan.pattern}",
            model=model,
            text=self._training_text(),
            stages=tuple(stages),
            seed=self.seed,
            start=self.start if self.start in shipped_models() else str(self.directory.absolute()),
            dtype=self.dtype,
            held_out_windows=max(2, 8192 // self.length),
            evaluate_every=max(1, steps // 8),
            evaluate_first=True,
        )

    def _training_text(self) -> TrainingText:
        if self.text is None:
            return text_from_record(training_text(self.directory))
        patterns = tuple(map(anywhere, self.patterns)) or ("**/*",)
        exclude = (".*", "__pycache__", "runs")
        path = str(Path(self.text).expanduser().absolute())
        return TextFolder(path=path, pattern=patterns, exclude=exclude, held_out=0.1)

    def _indexer(self, keys: Literal["all", "selected"], *, with_draft: bool) -> Indexer:
        return Indexer(
            keys=keys, target="served", form=self.form, layer_weights=self.layer_weights, with_draft=with_draft,
            stride=max(1, self.length // _QUERIES),
        )  # fmt: skip

    def _rows(self, model: ModelConfig) -> dict[str, int]:
        reach = position_reach(training_record(self.directory) or {}, model)
        batch = self.rows * self.length
        return {
            "sequence_length": self.length, "batch_tokens": batch, "micro_tokens": self.length,
            "position_reach": reach if reach > self.length else 0,
        }  # fmt: skip

    def _warmup(self, model: ModelConfig) -> Stage:
        """Indexers alone, over all earlier tokens."""
        return indexer_warmup(
            name="warmup",
            plan=self.plan,
            tokens=self.warmup_tokens,
            mixture={"text": 1.0},
            objectives=(self._indexer("all", with_draft=True), Balance(rate=0.0)),
            indexer_rank=self.rank,
            optim=OptimConfig(indexer_lr=self.rate * _WARM_RATE),
            schedule=Schedule(kind="cosine", warmup=0.05, final=0.1),
            **self._rows(model),
        )

    def _joint(self, model: ModelConfig) -> Stage:
        """The model from text under the selection, indexers from the selected tokens."""
        record = training_record(self.directory) or {}
        part = self.rate * _TRUNK_PART
        objectives: tuple[Objective, ...] = (NextToken(), self._indexer("selected", with_draft=False), Balance())
        if model.num_nextn_predict_layers:
            objectives += (Draft(),)
        return index_share(
            self.plan,
            name="joint",
            tokens=self.joint_tokens,
            mixture={"text": 1.0 - self.lookups, "lookup": self.lookups} if self.lookups else {"text": 1.0},
            objectives=objectives,
            indexer_rank=self.rank,
            optim=OptimConfig(
                muon_lr=part * peak_rate(record, "muon_lr"),
                adam_lr=part * peak_rate(record, "adam_lr"),
                indexer_lr=self.rate * _JOINT_RATE,
            ),
            schedule=Schedule(kind="cosine", warmup=0.05, final=0.05),
            **self._rows(model),
        )
