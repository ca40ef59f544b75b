"""The indexers' loss: KL of their scores to the attention of the layers they choose for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from indexshare import ops
from indexshare.config.model import ModelConfig
from indexshare.config.share_plan import SharePlan
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import AttentionRecord, IndexTensors, Observer
from indexshare.model.selection import dense_rows
from indexshare.train.objectives.base import Activations, Objective, Progress, Term

Keys = Literal["all", "selected"]
Target = Literal["own", "served"]
Form = Literal["each", "mean"]


@dataclass(frozen=True, kw_only=True)
class Indexer(Objective):
    """Mean KL over Full layers and queries, in nats: the metric `indexer_loss`. No other loss reaches an indexer.

    Attributes:
        keys: of each query: `all` earlier tokens, or the `selected` ones where it has a selection.
        target: whose attention an indexer learns, its `own` layer's or that of all layers `served` by it.
        form: of the loss of several layers: the mean of a KL for `each`, or one KL to their `mean` attention. The
            gradients are the same (IndexCache, proposition 1); the first is larger by what the layers disagree, and
            needs no activations but the indexer's until the last of them.
        layer_weights: one for each layer of the trunk, by which those that an indexer serves share in its loss; all the
            same where there are none.
        weight: factor of the loss; with AdamW it matters only against clipping.
        stride: the loss is taken at one query in this many; its mean stays the same, its cost falls.
        with_draft: run the draft layer for its indexer's sake, in a stage where no other objective runs it.
    """

    trains = ("indexer",)
    keys: Keys = "selected"
    target: Target = "own"
    form: Form = "each"
    layer_weights: tuple[float, ...] = ()
    weight: float = 1.0
    stride: int = 1
    with_draft: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise ValueError(f"Indexer has stride {self.stride}; expected at least 1")
        if self.target == "own" and (self.form != "each" or self.layer_weights):
            raise ValueError("Indexer has a form or layer_weights, which are of layers served; its target is 'own'")

    def check(self, *, sequence_length: int, model: ModelConfig) -> None:
        """Weights for this model's layers, and some for every indexer."""
        if not self.layer_weights:
            return
        layers, plan = model.num_hidden_layers, model.share_plan
        if len(self.layer_weights) != layers or min(self.layer_weights) < 0:
            raise ValueError(
                f"has layer_weights for {len(self.layer_weights)} layers; expected {layers}, none of them negative"
            )
        idle = [full for full in plan.full_layers if not sum(self.layer_weights[n] for n in plan.served_by(full)) > 0]
        if idle:
            raise ValueError(f"has layer_weights of zero for all layers served by {idle}, whose indexers learn nothing")

    def record(self) -> dict[str, Any]:
        """Settings as plain values; those of several layers only where they are not the usual ones, as older runs."""
        usual = {"form": "each", "layer_weights": ()}
        return {key: value for key, value in asdict(self).items() if key not in usual or value != usual[key]}

    def draft_steps(self, progress: Progress, model: ModelConfig) -> int:
        """The first step has an indexer."""
        return 1 if self.with_draft and model.num_nextn_predict_layers else 0

    def observer(self, model: GlmMoeDsa) -> IndexerObserver:
        """Takes the loss of each layer as it passes."""
        return IndexerObserver(self, model.plan)

    def terms(self, activations: Activations, seen: Observer) -> Sequence[Term]:
        """This micro-batch's share."""
        assert isinstance(seen, IndexerObserver)
        if seen.loss is None:
            return ()
        layers = seen.rows / len(activations.hidden)
        share = seen.loss / (layers * activations.whole.rows * activations.whole.length)
        return [Term(name="indexer_loss", value=share, weight=self.weight)]


class IndexerObserver(Observer):
    """Adds up the loss over the layers of a pass.

    Attributes:
        loss: sum over Full layers and rows, a float32 scalar with a graph, or None.
        rows: how many (Full layer, row) pairs it stands for.
    """

    wants_attention = True

    def __init__(self, settings: Indexer, plan: SharePlan) -> None:
        self._served, self._plan = settings.target == "served", plan
        self._all_keys, self._stride = settings.keys == "all", settings.stride
        self._mean, self._weights = settings.form == "mean", settings.layer_weights
        self._teachers: list[ops.Teacher] = []  # of the group at hand, for their mean
        self._index: IndexTensors | None = None  # of the last Full layer
        self.loss: Tensor | None = None
        self.rows = 0

    def attention(self, record: AttentionRecord) -> None:
        """Add the loss of a layer's indexer, its own or the one that serves it."""
        if record.index is not None:
            self._index = record.index
        elif not self._served:
            return
        groups = self._groups(record)
        loss = self._loss_of_mean(record, groups) if self._mean else self._loss_of_each(record, groups)
        if loss is None:
            return
        self.loss = loss if self.loss is None else self.loss + loss

    def _loss_of_each(self, record: AttentionRecord, groups: list[ops.KLRows]) -> Tensor:
        """This layer's part of the mean over those that its indexer serves."""
        index = self._index
        assert index is not None
        loss = ops.indexer_kl(index.q, index.weights, index.keys, record.queries, record.latents, groups, record.scale)
        if record.index is not None:
            self._count(groups)
        if self._weights:
            return loss * self._part(record)
        return loss / len(self._learners(record))

    def _loss_of_mean(self, record: AttentionRecord, groups: list[ops.KLRows]) -> Tensor | None:
        """The group's loss, once its last layer has come."""
        if record.index is not None:
            self._teachers = []
        self._teachers.append(ops.Teacher(record.queries, record.latents, record.scale, self._part(record)))
        if record.layer != self._learners(record)[-1]:
            return None
        self._count(groups)
        index, teachers = self._index, self._teachers
        assert index is not None
        return ops.indexer_kl_mean(index.q, index.weights, index.keys, teachers, groups)

    def _count(self, groups: list[ops.KLRows]) -> None:
        self.rows += sum(group.rows.numel() for group in groups)

    def _learners(self, record: AttentionRecord) -> tuple[int, ...]:
        """Layers that are learned with this one: those of the same Full layer; the draft layer is not in the plan."""
        if not self._served or record.layer >= self._plan.num_layers:
            return (record.layer,)
        return self._plan.served_by(record.source)

    def _part(self, record: AttentionRecord) -> float:
        """The layer's part in the loss of its group; they add up to one."""
        learners = self._learners(record)
        if not self._weights or len(learners) == 1:
            return 1 / len(learners)
        return self._weights[record.layer] / sum(self._weights[layer] for layer in learners)

    def _groups(self, record: AttentionRecord) -> list[ops.KLRows]:
        """Candidates of each query: everything before it, or its selection where it has one."""
        groups, device = [], record.latents.device
        for span in record.view.spans:
            count = span.length if self._all_keys else dense_rows(span, record.selection.limit)
            if count:
                rows = torch.arange(span.start, span.start + count, self._stride, device=device)
                groups.append(ops.KLRows(rows, first=span.start))
        if not self._all_keys and record.selection.num_rows:
            selection = record.selection
            groups.append(ops.KLRows(selection.rows[:: self._stride], slots=selection.slots[:: self._stride]))
        return groups
