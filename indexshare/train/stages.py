"""The stages of a training run: what differs between them, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

from indexshare.config.fields import check_fields
from indexshare.config.share_plan import SharePlan
from indexshare.data.sources import Draw, weight_of
from indexshare.train.objectives import Balance, Indexer, NextToken, Objective, Part
from indexshare.train.optim import OptimConfig, Schedule

Attention = Literal["full", "sparse"]
_Kind = TypeVar("_Kind", bound=Objective)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run. Use `pretrain`, `indexer_warmup`, `sparse` and `index_share` to make the usual ones.

    Attributes:
        name: shown in progress and metrics; unique in a recipe.
        tokens: input tokens of the stage; rounded up to whole updates.
        sequence_length: input tokens per row.
        batch_tokens: input tokens per update.
        micro_tokens: most input tokens per forward pass; smaller costs time, larger memory.
        mixture: source name -> weight (`text`, `renamed` text, the generated `retrieval` and `lookup`, and what else is
            registered in `data.sources`), or a `Draw` where a source takes settings.
        position_reach: most positions a row is spread over (`data.positions`); 0 leaves them 0, 1, 2, ...
        attention: `full` attends to all earlier tokens; `sparse` to each layer's selection.
        objectives: what is learned (`train/objectives/`). Parameters that none of them trains stand still.
        plan: Full and Shared layers; None leaves every layer Full. Surplus indexers are dropped at the start.
        layers: of the trunk, from the first; None for all. The others join in a later stage with initial weights
            (stacking: Gong et al., "Efficient Training of BERT by Progressively Stacking", ICML 2019): what the first
            layers learn alone lies below those that join, where the indexers of Full layers can make use of it.
        indexer_rank: train the indexers' matrices by low-rank products of this rank (LoRA), merged at the stage's end;
            None for the matrices themselves.
        optim: learning rates and the like.
        schedule: of the learning rates over the stage.
        averaged: part of the updates, the last ones, over whose weights the stage ends with the mean.
            Nothing for 0.
    """

    name: str
    tokens: int
    sequence_length: int
    batch_tokens: int
    micro_tokens: int = 8192
    mixture: Mapping[str, float | Draw] = field(default_factory=lambda: {"text": 0.95, "retrieval": 0.05})
    position_reach: int = 0
    attention: Attention = "full"
    objectives: tuple[Objective, ...] = (NextToken(), Balance())
    plan: SharePlan | None = None
    layers: int | None = None
    indexer_rank: int | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: Schedule = field(default_factory=Schedule)
    averaged: float = 0.0

    def __post_init__(self) -> None:
        if self.layers is not None and (type(self.layers) is not int or self.layers < 1):
            raise ValueError(f"stage {self.name!r}: layers is {self.layers!r}; expected a whole number of at least 1")
        check_fields(self, f"stage {self.name!r}: ")
        for name in ("tokens", "sequence_length", "batch_tokens", "micro_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"stage {self.name!r}: {name} is {getattr(self, name)}; expected at least 1")
        if self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"stage {self.name!r}: batch_tokens {self.batch_tokens} is not a whole number of rows of "
                f"{self.sequence_length} tokens"
            )
        if self.position_reach and self.position_reach < self.sequence_length:
            raise ValueError(
                f"stage {self.name!r}: position_reach is {self.position_reach}; expected 0 or at least the "
                f"{self.sequence_length} tokens of a row"
            )
        if not 0.0 <= self.averaged <= 1.0:
            raise ValueError(f"stage {self.name!r}: averaged is {self.averaged}; expected a part between 0 and 1")
        self._check_objectives()
        if self.indexer_rank is not None and (self.indexer_rank < 1 or not self.trains("indexer")):
            raise ValueError(
                f"stage {self.name!r}: indexer_rank is {self.indexer_rank}; expected 1 or more, in a stage with the "
                "objective Indexer"
            )
        if self.layers is not None and self.plan is not None:
            raise ValueError(f"stage {self.name!r}: layers beside a plan; leave one out, sharing needs the whole trunk")

    def _check_objectives(self) -> None:
        kinds = [type(objective).__name__ for objective in self.objectives]
        if not any(objective.trains for objective in self.objectives) or len(set(kinds)) != len(kinds):
            raise ValueError(
                f"stage {self.name!r}: objectives are {kinds}; expected one that trains something, and one of each kind"
            )

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each source."""
        return {name: weight_of(use) for name, use in self.mixture.items()}

    @property
    def rows(self) -> int:
        """Rows per update."""
        return self.batch_tokens // self.sequence_length

    @property
    def micro_rows(self) -> int:
        """Rows per forward pass."""
        return max(1, min(self.rows, self.micro_tokens // self.sequence_length))

    @property
    def steps(self) -> int:
        """Updates in the stage."""
        return -(-self.tokens // self.batch_tokens)

    def averages(self, step: int) -> bool:
        """Whether the weights after so many updates of the stage count for the mean that it ends with."""
        return step > self.steps - round(self.averaged * self.steps)

    def objective(self, kind: type[_Kind]) -> _Kind | None:
        """The stage's objective of a kind, if it has one."""
        return next((objective for objective in self.objectives if isinstance(objective, kind)), None)

    def learning(self, *objectives: Objective) -> Stage:
        """The same stage with these objectives, each in place of the one of its kind or after all others."""
        new = {type(objective): objective for objective in (*self.objectives, *objectives)}
        return replace(self, objectives=tuple(new.values()))

    def without(self, *kinds: type[Objective]) -> Stage:
        """The same stage without its objectives of these kinds."""
        return replace(self, objectives=tuple(o for o in self.objectives if not isinstance(o, kinds)))

    def trains(self, part: Part) -> bool:
        """Whether an objective moves the parameters of this part of the model."""
        return any(part in objective.trains for objective in self.objectives)

    def record(self) -> dict[str, Any]:
        """All fields as plain values, for the record of a run; the objectives by name."""
        objectives = {type(objective).__name__: objective.record() for objective in self.objectives}
        return asdict(self) | {"objectives": objectives}

    def scaled(self, part: float) -> Stage:
        """The same stage with a part of its tokens, at least one update: for trying a recipe out."""
        return replace(self, tokens=max(self.batch_tokens, int(self.tokens * part)))


def pretrain(**settings: Any) -> Stage:
    """Full attention; the model learns the language. Indexers are idle."""
    return Stage(**({"name": "pretrain"} | settings))


def indexer_warmup(**settings: Any) -> Stage:
    """Full attention; only indexers learn, from the attention over all earlier tokens. Every layer is Full."""
    defaults: dict[str, Any] = {
        "name": "indexer_warmup",
        "objectives": (Indexer(keys="all", with_draft=True), Balance(rate=0.0)),
        "schedule": Schedule(kind="cosine", warmup=0.05),
    }
    return Stage(**(defaults | settings))


def sparse(**settings: Any) -> Stage:
    """Top-k attention with every layer Full: the model learns from text, indexers from the selected tokens."""
    defaults = {"name": "sparse", "attention": "sparse", "objectives": (NextToken(), Indexer(), Balance())}
    return Stage(**(defaults | settings))


def index_share(plan: SharePlan, **settings: Any) -> Stage:
    """Top-k attention under the final share plan, at longer context."""
    return sparse(**({"name": "index_share", "plan": plan} | settings))
