"""What an objective is: named terms of a stage's loss, made from what one micro-batch did in the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from indexshare.config.fields import check_fields
from indexshare.config.model import ModelConfig
from indexshare.data.batch import Batch
from indexshare.model.draft.mtp import DraftState
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import Observer
from indexshare.train.optim import is_indexer

Part = Literal["trunk", "draft", "indexer"]
Tally = Mapping[str, Tensor]


def part_of(parameter: str) -> Part:
    """The part of the model that a parameter belongs to, by its name; the draft layer's indexer is an indexer."""
    if is_indexer(parameter):
        return "indexer"
    return "draft" if parameter.startswith("mtp.") else "trunk"


class Progress(NamedTuple):
    """Updates made in the stage so far, and all that it will have."""

    step: int
    steps: int


@dataclass(frozen=True, kw_only=True)
class Activations:
    """One micro-batch after its pass through the model.

    Attributes:
        model: with the graph of this pass.
        batch: the rows of the micro-batch.
        whole: all rows of the update. What a term adds up over `batch` is divided by a number of `whole`, so that the
            terms of all micro-batches add up to a mean over the update.
        hidden: `[B * S, H]`, the trunk's output after its final norm: row i of it predicts `batch.targets()[i]`.
        drafts: the draft layer after each of the steps that some objective asked for.
        progress: where the stage stands.
    """

    model: GlmMoeDsa
    batch: Batch
    whole: Batch
    hidden: Tensor
    drafts: Sequence[DraftState]
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Term:
    """One part of the loss.

    Attributes:
        name: of its metric, unique in a stage. The progress line shows those that end in `_loss`.
        value: scalar with a graph, this micro-batch's share.
        weight: factor in the sum that is learned from; None only reports the value.
    """

    name: str
    value: Tensor
    weight: float | None = 1.0


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a stage learns. Subclasses are frozen dataclasses: their fields are settings, and stand in the run's record.

    Micro-batches run in threads and all use the same objective, so what is collected during one forward pass belongs to
    its observer. For every micro-batch the loop calls `observer`, runs the model, and then `terms` and `tally`; when
    all of them are added up, it calls `finish` once.
    """

    trains: ClassVar[tuple[Part, ...]] = ()  # which parameters it moves; all others of the model stand still

    def __post_init__(self) -> None:
        check_fields(self, f"{type(self).__name__}: ")

    def check(self, *, sequence_length: int, model: ModelConfig) -> None:
        """Raise ValueError where rows of this length or this model cannot be used; asked before a run begins."""

    def draft_steps(self, progress: Progress, model: ModelConfig) -> int:
        """How many steps of the draft layer it needs to see in this update."""
        return 0

    def observer(self, model: GlmMoeDsa) -> Observer:
        """What watches a forward pass for it."""
        return Observer()

    def terms(self, activations: Activations, seen: Observer) -> Sequence[Term]:
        """Its part of the loss of a micro-batch; `seen` is the observer of this pass."""
        return ()

    def tally(self, seen: Observer) -> Tally:
        """Tensors to be added up over the micro-batches of an update, by name."""
        return {}

    def finish(self, model: GlmMoeDsa, tally: Tally) -> dict[str, float]:
        """Act on the sums of an update, before the optimizer does; returns metrics."""
        return {}

    def record(self) -> dict[str, Any]:
        """Settings as plain values, for the record of the run."""
        return asdict(self)
