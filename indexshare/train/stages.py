"""The stages of a training run: what differs between them, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from indexshare.config.fields import check_fields
from indexshare.config.share_plan import SharePlan
from indexshare.data.sources import Draw, weight_of
from indexshare.train.optim import OptimConfig, Schedule

Attention = Literal["full", "sparse"]
Trains = Literal["all", "indexer"]
IndexerLoss = Literal["none", "all", "selected"]
IndexerTarget = Literal["own", "served"]


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
        trains: `all` parameters, or the `indexer` alone.
        indexer_loss: KL of indexers to attention over `all` earlier tokens, over the `selected` ones, or `none`.
        indexer_target: whose attention an indexer learns, its `own` layer's or that of all layers `served` by it.
        indexer_weight: factor of that loss; with AdamW it matters only against clipping.
        indexer_stride: that loss is taken at one query in this many; its mean stays the same, its cost falls.
        plan: Full and Shared layers; None leaves every layer Full. Surplus indexers are dropped at the start.
        layers: of the trunk, from the first; None for all. The others join in a later stage with initial weights
            (stacking: Gong et al., "Efficient Training of BERT by Progressively Stacking", ICML 2019): what the first
            layers learn alone lies below those that join, where the indexers of Full layers can make use of it.
        mtp_weight: factor of the draft layer's loss; 0 leaves the draft layer out.
        mtp_steps: draft steps trained.
        mtp_from: part of the stage after which the draft loss begins (it costs time, and learns fast).
        optim: learning rates and the like.
        schedule: of the learning rates over the stage.
        balance_rate: step of the experts' correction bias after each update; 0 leaves it alone.
    """

    name: str
    tokens: int
    sequence_length: int
    batch_tokens: int
    micro_tokens: int = 8192
    mixture: Mapping[str, float | Draw] = field(default_factory=lambda: {"text": 0.95, "retrieval": 0.05})
    position_reach: int = 0
    attention: Attention = "full"
    trains: Trains = "all"
    indexer_loss: IndexerLoss = "none"
    indexer_target: IndexerTarget = "own"
    indexer_weight: float = 1.0
    indexer_stride: int = 1
    plan: SharePlan | None = None
    layers: int | None = None
    mtp_weight: float = 0.0
    mtp_steps: int = 1
    mtp_from: float = 0.0
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: Schedule = field(default_factory=Schedule)
    balance_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.layers is not None and (type(self.layers) is not int or self.layers < 1):
            raise ValueError(f"stage {self.name!r}: layers is {self.layers!r}; expected a whole number of at least 1")
        check_fields(self, f"stage {self.name!r}: ")
        for name in ("tokens", "sequence_length", "batch_tokens", "micro_tokens", "mtp_steps", "indexer_stride"):
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
        if self.mtp_weight < 0 or not 0.0 <= self.mtp_from <= 1.0:
            raise ValueError(
                f"stage {self.name!r}: mtp_weight {self.mtp_weight} and mtp_from {self.mtp_from}; expected a weight "
                "of zero or more and a part of the stage between 0 and 1"
            )
        if self.mtp_steps >= self.sequence_length:
            raise ValueError(
                f"stage {self.name!r}: {self.mtp_steps} draft steps need rows of more than that many tokens, "
                f"sequence_length is {self.sequence_length}"
            )
        if self.layers is not None and self.plan is not None:
            raise ValueError(f"stage {self.name!r}: layers beside a plan; leave one out, sharing needs the whole trunk")
        if self.trains == "indexer" and self.indexer_loss == "none":
            raise ValueError(f"stage {self.name!r} trains the indexer alone but has no indexer loss")

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

    def trains_draft(self, step: int) -> bool:
        """Whether the draft loss is on at this update."""
        return self.mtp_weight > 0 and self.trains == "all" and step >= self.mtp_from * self.steps

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
        "trains": "indexer",
        "indexer_loss": "all",
        "balance_rate": 0.0,
        "schedule": Schedule(kind="cosine", warmup=0.05),
    }
    return Stage(**(defaults | settings))


def sparse(**settings: Any) -> Stage:
    """Top-k attention with every layer Full: the model learns from text, indexers from the selected tokens."""
    return Stage(**({"name": "sparse", "attention": "sparse", "indexer_loss": "selected"} | settings))


def index_share(plan: SharePlan, **settings: Any) -> Stage:
    """Top-k attention under the final share plan, at longer context."""
    defaults: dict[str, Any] = {
        "name": "index_share",
        "attention": "sparse",
        "indexer_loss": "selected",
        "plan": plan,
    }
    return Stage(**(defaults | settings))
