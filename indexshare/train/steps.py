"""One update's worth of losses: the batch in micro-batches, each through the trunk and the draft layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from indexshare import ops
from indexshare.cache.view import InFlightView
from indexshare.data.batch import Batch
from indexshare.model.experts import MoE
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import AttentionRecord, IndexTensors, Observer
from indexshare.model.selection import FULL_ATTENTION, dense_rows
from indexshare.train.objectives import next_token_loss, update_expert_bias
from indexshare.train.optim import MixedOptimizer
from indexshare.train.stages import Stage

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class TrainingObserver(Observer):
    """Collects expert loads, and the indexers' losses where the stage has one.

    A Full layer's indexer learns from that layer's own attention, or (`indexer_target="served"`) from the mean of the
    attention of all layers it serves: as the mean of a KL for each, which has the same gradient (IndexCache,
    proposition 1).

    Attributes:
        indexer_loss: sum over Full layers and rows, a float32 scalar with a graph, or None.
        indexer_rows: how many (Full layer, row) pairs it stands for.
        loads: layer -> int64 [experts], tokens taken.
    """

    def __init__(self, stage: Stage, num_experts: int) -> None:
        self.wants_attention = stage.indexer_loss != "none"
        self._served = stage.indexer_target == "served"
        self._plan = stage.plan
        self._index: IndexTensors | None = None  # of the last Full layer
        self._all_keys = stage.indexer_loss == "all"
        self._stride = stage.indexer_stride
        self._num_experts = num_experts
        self.indexer_loss: Tensor | None = None
        self.indexer_rows = 0
        self.loads: dict[int, Tensor] = {}

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
        self.indexer_loss = loss if self.indexer_loss is None else self.indexer_loss + loss
        if record.index is not None:
            self.indexer_rows += sum(group.rows.numel() for group in groups)

    def _group_size(self, record: AttentionRecord) -> int:
        """Layers that learn with this one: those of the same Full layer; the draft layer is not in the plan."""
        if not self._served or self._plan is None or record.layer >= self._plan.num_layers:
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

    def routing(self, layer: int, expert_ids: Tensor) -> None:
        """Count the tokens of each expert."""
        count = torch.bincount(expert_ids.flatten(), minlength=self._num_experts)
        self.loads[layer] = self.loads[layer] + count if layer in self.loads else count


def draft_losses(
    model: GlmMoeDsa, batch: Batch, hidden: Tensor, view: InFlightView, steps: int, *, below: int, observer: Observer
) -> list[Tensor]:
    """Cross-entropy of each draft step, summed over positions, of one micro-batch.

    Slot i holds (embedding of token i + 1, hidden i) and predicts token i + 2; step j uses the embedding of token
    i + j and predicts token i + j + 1. Trunk states, embeddings and head are constants here: the draft layer alone
    learns. (A total-variation loss against the trunk's own distribution would take this function's place.)

    Args:
        batch: the rows; hidden: [B * S, H] from the trunk; view: the trunk's.
        steps: draft steps.
        below: as in `model.trunk`.
        observer: as in `model.trunk`.
    """
    if model.mtp is None:
        raise ValueError("the stage trains the draft layer, but the model has none (num_nextn_predict_layers)")
    table, head = model.embed_tokens.weight.detach(), model.lm_head.weight.detach()
    losses, state = [], None
    for step in range(1, steps + 1):
        embeddings = torch.nn.functional.embedding(batch.ahead(step), table)  # beyond the end: any, it has no target
        if state is None:
            state = model.mtp(embeddings, hidden.detach(), view, full_attention_below=below, observer=observer)
        else:
            state = model.mtp.step(embeddings, state, view, step)
        losses.append(next_token_loss(state.hidden, head, batch.targets(step + 1), count=1))
    return losses


@dataclass(kw_only=True)
class _Share:
    """What one micro-batch adds to an update."""

    grads: tuple[Tensor | None, ...]
    sums: dict[str, float]
    loads: dict[int, Tensor]


class Workers:
    """Threads that run micro-batches side by side, each with one compute thread.

    On a few cores this beats splitting every small product over the cores: nothing waits at a barrier, and other
    programs on the machine slow it down in proportion only. Shares are added in the order of the micro-batches, so
    the result depends on the number of workers by rounding only, and not at all on which of them is faster.

    Args:
        count: micro-batches at a time; 1 runs them in the calling thread with all compute threads.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"{count} workers; expected at least 1")
        start = partial(torch.set_num_threads, 1)
        self.count = count
        self._pool = ThreadPoolExecutor(count, initializer=start) if count > 1 else None

    def map(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterable[_Result]:
        """Results in order."""
        return map(function, items) if self._pool is None else self._pool.map(function, items)


def train_batch(
    model: GlmMoeDsa,
    optimizer: MixedOptimizer,
    stage: Stage,
    batch: Batch,
    stage_step: int,
    workers: Workers | None = None,
) -> dict[str, float]:
    """Gradients of one update, summed in the optimizer's masters, and the experts' bias update.

    Args:
        model: in training mode; optimizer: over its trainable parameters.
        stage: losses and their weights.
        batch: the rows of the update.
        stage_step: updates made in the stage so far.
        workers: run micro-batches side by side.

    Returns:
        `loss` (what the stage optimises first: next-token, or the indexers' in a warm-up), and where they apply
        `draft_loss`, `indexer_loss` (nats) and `load_imbalance` (largest expert load over the mean, worst layer).
    """
    sums: dict[str, float] = defaultdict(float)
    loads: dict[int, Tensor] = {}
    drafts = stage.trains_draft(stage_step)
    job = partial(_micro_batch, model, optimizer.parameters, stage, batch, drafts)
    workers = workers or Workers(1)
    rows = min(stage.micro_rows, -(-batch.rows // workers.count))  # no worker stays idle
    for share in workers.map(job, batch.split(rows)):
        optimizer.accumulate(share.grads)
        for key, value in share.sums.items():
            sums[key] += value
        for layer, load in share.loads.items():
            loads[layer] = loads[layer] + load if layer in loads else load
    if loads:
        sums["load_imbalance"] = max(float(load.max() / load.float().mean()) for load in loads.values())
        if stage.balance_rate > 0:
            balance(model, loads, stage.balance_rate)
    if stage.trains == "indexer":
        sums["loss"] = sums["indexer_loss"]
    return dict(sums)


def _micro_batch(
    model: GlmMoeDsa,
    parameters: list[Tensor],
    stage: Stage,
    whole: Batch,
    drafts: bool,
    batch: Batch,
) -> _Share:
    """Forward and backward of one micro-batch: its share of each mean over the batch, and of the gradient."""
    sums: dict[str, float] = {}
    terms = []
    observer = TrainingObserver(stage, model.config.n_routed_experts)
    rotary = None if batch.positions is None else batch.positions.reshape(-1)
    view = InFlightView([batch.length] * batch.rows, batch.tokens.device, rotary_positions=rotary)
    below = FULL_ATTENTION if stage.attention == "full" else 0
    hidden = model.trunk(batch.inputs, view, full_attention_below=below, observer=observer)
    if stage.trains == "all":
        loss = next_token_loss(hidden, model.lm_head.weight, batch.targets(), count=whole.count())
        sums["loss"] = float(loss.detach())
        terms.append(loss)
    if drafts or (stage.trains == "indexer" and model.mtp is not None):
        steps = stage.mtp_steps if drafts else 1
        parts = draft_losses(model, batch, hidden, view, steps, below=below, observer=observer)
        if drafts:
            means = [part / whole.count(j + 1) for j, part in enumerate(parts, start=1)]
            draft = torch.stack(means).mean()
            sums["draft_loss"] = float(draft.detach())
            terms.append(stage.mtp_weight * draft)
    if observer.indexer_loss is not None:
        layers = observer.indexer_rows / len(hidden)
        indexer = observer.indexer_loss / (layers * whole.rows * whole.length)
        sums["indexer_loss"] = float(indexer.detach())
        terms.append(stage.indexer_weight * indexer)
    grads = torch.autograd.grad(torch.stack(terms).sum(), parameters, allow_unused=True)
    return _Share(grads=grads, sums=sums, loads=observer.loads)


def balance(model: GlmMoeDsa, loads: dict[int, Tensor], rate: float) -> None:
    """Move each layer's expert correction bias against its load; the draft layer is `num_hidden_layers`."""
    for index, load in loads.items():
        draft = index == model.config.num_hidden_layers
        layer = model.mtp.layer if draft and model.mtp is not None else model.layers[index]
        assert isinstance(layer.mlp, MoE)
        update_expert_bias(layer.mlp.gate.e_score_correction_bias, load, rate)
