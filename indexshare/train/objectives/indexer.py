"""The indexers' loss: KL of their scores to the attention of the layers they choose for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True, kw_only=True)
class Indexer(Objective):
    """Mean KL over Full layers and queries, in nats: the metric `indexer_loss`. No other loss reaches an indexer.

    Attributes:
        keys: of each query: `all` earlier tokens, or the `selected` ones where it has a selection.
        target: whose attention an indexer learns, its `own` layer's or that of all layers `served` by it: as the mean
            of a KL for each, which has the same gradient as one to their mean (IndexCache, proposition 1).
        weight: factor of the loss; with AdamW it matters only against clipping.
        stride: the loss is taken at one query in this many; its mean stays the same, its cost falls.
        with_draft: run the draft layer for its indexer's sake, in a stage where no other objective runs it.
    """

    trains = ("indexer",)
    keys: Keys = "selected"
    target: Target = "own"
    weight: float = 1.0
    stride: int = 1
    with_draft: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride < 1:
            raise ValueError(f"Indexer has stride {self.stride}; expected at least 1")

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
        self._index: IndexTensors | None = None  # of the last Full layer
        self.loss: Tensor | None = None
        self.rows = 0

    def attention(self, record: AttentionRecord) -> None:
        """Add the loss of a layer's indexer, its own or the one that serves it."""
        if record.index is not None:
            self._index = record.index
        elif not self._served:
            return
        groups, index = self._groups(record), self._index
        assert index is not None
        loss = ops.indexer_kl(index.q, index.weights, index.keys, record.queries, record.latents, groups, record.scale)
        loss = loss / self._group_size(record)
        self.loss = loss if self.loss is None else self.loss + loss
        if record.index is not None:
            self.rows += sum(group.rows.numel() for group in groups)

    def _group_size(self, record: AttentionRecord) -> int:
        """Layers that learn with this one: those of the same Full layer; the draft layer is not in the plan."""
        if not self._served or record.layer >= self._plan.num_layers:
            return 1
        return len(self._plan.served_by(record.source))

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
