"""A run of reinforcement learning as data. Recipes are Python functions that return one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from indexshare.config.fields import check_fields
from indexshare.config.model import ModelConfig
from indexshare.rl.compaction import Compaction
from indexshare.rl.credit import Credit, Normalise
from indexshare.rl.environment import Task
from indexshare.rl.episode import Limits
from indexshare.rl.losses import Ratio
from indexshare.train.optim import OptimConfig, Schedule
from indexshare.train.recipe import recipe_object


def adam(rate: float, **settings: Any) -> OptimConfig:
    """AdamW for everything at one rate, without decay."""
    rates = {"muon_lr": 0.0, "adam_lr": rate, "router_lr": rate, "indexer_lr": rate, "weight_decay": 0.0}
    return OptimConfig(**(rates | settings))


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """Demonstrations that the policy begins from, until it sometimes succeeds by itself.

    Success is measured as it is sampled: what the likeliest tokens achieve says nothing of what there is to learn from.

    Attributes:
        steps: most updates.
        rows: demonstrations in each.
        until: sampled success on held-out problems at which it ends.
        every: updates between measurements.
        optim: rates.
    """

    steps: int = 400
    rows: int = 128
    until: float = 0.25
    every: int = 20
    optim: OptimConfig = field(default_factory=lambda: adam(1e-3))

    def __post_init__(self) -> None:
        check_fields(self, "warmup: ")
        if min(self.steps, self.rows, self.every) < 1 or not 0 < self.until <= 1:
            raise ValueError(
                f"warmup: steps {self.steps}, rows {self.rows}, every {self.every}, until {self.until}; expected at "
                "least 1 of the first three and a part above 0"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A full run.

    Attributes:
        name: of the run and of the model it makes.
        model: the policy's configuration.
        task: what is learned.
        warmup: how the policy begins; None with `start`.
        start: model directory, or the name of a shipped model, to begin with in place of random weights.
        algorithm: `ppo` with a critic, or `grpo`, which compares the rollouts of a problem.
        steps: updates of the policy.
        batch: rollouts in each.
        group: rollouts of one problem; 1 with PPO as a rule.
        context: most tokens of a segment; None for what task and model allow.
        compaction: what happens where it runs out.
        credit, ratio, normalise: the rules (`credit`, `losses`).
        whiten: least deviation that advantages are divided by; None leaves them as they are.
        value_steps: updates of the critic alone, before the first of the policy.
        critic_updates: of the critic for each of the policy.
        critic_trains: all of the critic, or its feed-forward layers and head (`ffn`).
        value_clip: see `losses.value_loss`.
        optim, critic_optim: rates, each with the schedule `schedule` over the steps.
        indexer: whether the policy's indexers learn beside it, from the attention they choose for; experts' biases
            stand still in any case.
        in_flight: rollouts at a time. More than `batch` start ahead and are carried over updates.
        most_stale: rollouts whose oldest token is more versions behind than this are dropped, and counted.
        publish_every: updates between two new weights for the rollouts.
        micro_tokens: most tokens of one pass of an update.
        evaluate_every: updates between measurements; evaluate_problems: held-out problems in each.
        keep_rollouts_every: updates between files of trajectories; 0 for none.
        random_reward: a control: rewards are replaced by coin flips.
        seed: of everything.
    """

    name: str
    model: ModelConfig
    task: Task
    warmup: Warmup | None = None
    start: str | None = None
    algorithm: Literal["ppo", "grpo"] = "ppo"
    steps: int = 150
    batch: int = 128
    group: int = 1
    context: int | None = None
    compaction: Compaction | None = None
    credit: Credit = field(default_factory=Credit)
    ratio: Ratio = field(default_factory=Ratio)
    normalise: Normalise = "token"
    whiten: float | None = 0.1
    value_steps: int = 20
    critic_updates: int = 2
    critic_trains: Literal["all", "ffn"] = "all"
    value_clip: float | None = None
    optim: OptimConfig = field(default_factory=lambda: adam(1e-4))
    critic_optim: OptimConfig = field(default_factory=lambda: adam(3e-4))
    schedule: Schedule = field(default_factory=lambda: Schedule(kind="constant", warmup=0.0))
    indexer: bool = False
    in_flight: int = 0
    most_stale: int = 4
    publish_every: int = 1
    micro_tokens: int = 8192
    evaluate_every: int = 25
    evaluate_problems: int = 256
    keep_rollouts_every: int = 25
    random_reward: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, f"recipe {self.name!r}: ")
        counts = ("steps", "batch", "group", "critic_updates", "publish_every", "micro_tokens", "evaluate_every",
                  "evaluate_problems")  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"recipe {self.name!r}: {name} is {getattr(self, name)}; expected at least 1")
        for name in ("value_steps", "in_flight", "most_stale", "keep_rollouts_every", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"recipe {self.name!r}: {name} is {getattr(self, name)}; expected zero or more")
        if (self.warmup is None) == (self.start is None):
            raise ValueError(f"recipe {self.name!r}: give either a warmup or a model to start from")
        if self.batch % self.group or (self.algorithm == "grpo" and self.group < 2):
            raise ValueError(
                f"recipe {self.name!r}: batch is {self.batch} and group {self.group}; expected whole groups, of at "
                "least 2 with grpo"
            )
        if self.task.tokenizer.vocab_size > self.model.vocab_size:
            raise ValueError(
                f"recipe {self.name!r}: the tokenizer has {self.task.tokenizer.vocab_size} entries, the model "
                f"{self.model.vocab_size}; give the model as many"
            )
        if self.limits.context > self.model.max_position_embeddings:
            raise ValueError(
                f"recipe {self.name!r}: context is {self.limits.context}; the model was made for "
                f"{self.model.max_position_embeddings}"
            )

    @property
    def limits(self) -> Limits:
        """Of a rollout."""
        return Limits(
            context=self.context or self.model.max_position_embeddings, turn_tokens=self.task.turn_tokens,
            max_turns=self.task.max_turns, compaction=self.compaction,
        )  # fmt: skip

    @property
    def ahead(self) -> bool:
        """Whether rollouts start before they are wanted."""
        return self.in_flight > self.batch

    def record(self) -> dict[str, Any]:
        """The settings that a resumed run must share, as plain values."""
        plain = (
            "name", "algorithm", "batch", "group", "context", "normalise", "whiten", "value_steps", "critic_updates",
            "critic_trains", "value_clip", "indexer", "in_flight", "most_stale", "publish_every", "random_reward",
            "seed", "start",
        )  # fmt: skip
        found = {name: getattr(self, name) for name in plain}
        found |= {name: asdict(getattr(self, name)) for name in ("credit", "ratio")}
        return found | {"task": self.task.name, "model": self.model.to_dict()}


def load_recipe(path: str | Path) -> Recipe:
    """Run the function `recipe` of a Python file.

    Raises:
        ValueError: no such file, or it has no function `recipe` that returns a Recipe.
    """
    result = recipe_object(path)
    if not isinstance(result, Recipe):
        raise ValueError(f"{path} has no function `recipe` that returns a Recipe of indexshare.rl")
    return result
