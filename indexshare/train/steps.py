"""One update: the batch in micro-batches, each through the model and the objectives of the stage."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from indexshare.cache.view import InFlightView
from indexshare.data.batch import Batch
from indexshare.model.draft.mtp import DraftState
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import AttentionRecord, Observer
from indexshare.model.selection import FULL_ATTENTION
from indexshare.train.gradients import Contribution, Gradients
from indexshare.train.objectives import Activations, Progress, Term
from indexshare.train.optim import MixedOptimizer
from indexshare.train.stages import Stage
from indexshare.train.workers import Workers


class Observers(Observer):
    """Several that watch the same pass."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers
        self.wants_attention = any(observer.wants_attention for observer in observers)

    def attention(self, record: AttentionRecord) -> None:
        """Told to those that asked for it."""
        for observer in self._observers:
            if observer.wants_attention:
                observer.attention(record)

    def routing(self, layer: int, expert_ids: Tensor) -> None:
        """Told to all."""
        for observer in self._observers:
            observer.routing(layer, expert_ids)


def train_batch(
    model: GlmMoeDsa,
    optimizer: MixedOptimizer,
    stage: Stage,
    batch: Batch,
    stage_step: int,
    workers: Workers | None = None,
) -> dict[str, float]:
    """Gradients of one update, summed in the optimizer's masters, and what the objectives do once for each update.

    Args:
        model: in training mode; optimizer: over its trainable parameters.
        stage: its objectives.
        batch: the rows of the update.
        stage_step: updates made in the stage so far.
        workers: run micro-batches side by side.

    Returns:
        The terms of the objectives by name (means over the batch, in nats where they are losses), their other metrics,
        and `loss`: what the stage optimises first, where no term has that name.

    Raises:
        ValueError: no objective gives a loss in this update, or two give terms of one name.
    """
    workers, progress, gradients = workers or Workers(1), Progress(stage_step, stage.steps), Gradients(optimizer)
    rows = min(stage.micro_rows, -(-batch.rows // workers.count))  # no worker stays idle
    job = partial(_contribution, model, gradients, stage, progress, batch)
    for contribution in workers.map(job, batch.split(rows)):
        gradients.add(contribution)
    terms, tallies = gradients.finish()
    metrics = dict(terms)
    for objective, tally in zip(stage.objectives, tallies, strict=True):
        metrics |= objective.finish(model, tally)
    return metrics | {"loss": terms.get("loss", next(iter(terms.values())))}


def _contribution(
    model: GlmMoeDsa, gradients: Gradients, stage: Stage, progress: Progress, whole: Batch, batch: Batch
) -> Contribution:
    """Forward and backward of one micro-batch: its share of each mean over the batch, and of the gradient."""
    observers = [objective.observer(model) for objective in stage.objectives]
    activations = _forward(model, stage, progress, whole, batch, Observers(observers))
    pairs = list(zip(stage.objectives, observers, strict=True))
    terms = [term for objective, seen in pairs for term in objective.terms(activations, seen)]
    parts = [term.weight * term.value for term in terms if term.weight is not None]
    _check(stage, progress, terms, bool(parts))
    return Contribution(
        gradients=gradients.gradients(torch.stack(parts).sum()),
        metrics={term.name: float(term.value.detach()) for term in terms},
        tallies=[objective.tally(seen) for objective, seen in pairs],
    )


def _check(stage: Stage, progress: Progress, terms: Sequence[Term], learns: bool) -> None:
    names = [term.name for term in terms]
    if not learns:
        raise ValueError(
            f"stage {stage.name!r} has nothing to learn from in update {progress.step + 1}: none of its objectives "
            "gives a loss"
        )
    if len(set(names)) != len(names):
        raise ValueError(f"the objectives of stage {stage.name!r} give terms {names}; expected names of their own")


def _forward(
    model: GlmMoeDsa, stage: Stage, progress: Progress, whole: Batch, batch: Batch, observer: Observer
) -> Activations:
    """The trunk, and as many draft steps as some objective asks for."""
    rotary = None if batch.positions is None else batch.positions.reshape(-1)
    view = InFlightView([batch.length] * batch.rows, batch.tokens.device, rotary_positions=rotary)
    below = FULL_ATTENTION if stage.attention == "full" else 0
    hidden = model.trunk(batch.inputs, view, full_attention_below=below, observer=observer)
    steps = max(objective.draft_steps(progress, model.config) for objective in stage.objectives)
    drafts = draft_states(model, batch, hidden, view, steps, below=below, observer=observer) if steps else []
    return Activations(model=model, batch=batch, whole=whole, hidden=hidden, drafts=drafts, progress=progress)


def draft_states(
    model: GlmMoeDsa, batch: Batch, hidden: Tensor, view: InFlightView, steps: int, *, below: int, observer: Observer
) -> list[DraftState]:
    """The draft layer after each of its steps, of one micro-batch.

    Slot i holds (embedding of token i + 1, hidden i) and predicts token i + 2; step j uses the embedding of token
    i + j and predicts token i + j + 1. Trunk states and embeddings are constants here.

    Args:
        batch: the rows; hidden: [B * S, H] from the trunk; view: the trunk's.
        steps: at least 1.
        below: as in `model.trunk`.
        observer: as in `model.trunk`.
    """
    if model.mtp is None:
        raise ValueError("the stage trains the draft layer, but the model has none (num_nextn_predict_layers)")
    table, states = model.embed_tokens.weight.detach(), list[DraftState]()
    for step in range(1, steps + 1):
        embeddings = F.embedding(batch.ahead(step), table)  # beyond the end: any token, its target is ignored
        if not states:
            states.append(model.mtp(embeddings, hidden.detach(), view, full_attention_below=below, observer=observer))
        else:
            states.append(model.mtp.step(embeddings, states[-1], view, step))
    return states
