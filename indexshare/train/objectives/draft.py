"""The draft layer's loss: cross-entropy of the tokens that it drafts, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.config.model import ModelConfig
from indexshare.data.batch import Batch
from indexshare.model.draft.mtp import DraftState
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import Observer
from indexshare.train.losses import next_token_loss
from indexshare.train.objectives.base import Activations, Objective, Progress, Term


@dataclass(frozen=True, kw_only=True)
class Draft(Objective):
    """Mean over the draft steps of their mean cross-entropy, in nats: the metric `draft_loss`.

    Trunk states, embeddings and head are constants here: the draft layer alone learns.

    Attributes:
        weight: factor of the loss.
        steps: draft steps trained.
        after: part of the stage after which the loss begins (it costs time, and learns fast).
    """

    trains = ("draft",)
    weight: float = 0.3
    steps: int = 1
    after: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weight > 0 or not 0.0 <= self.after <= 1.0:
            raise ValueError(
                f"Draft has weight {self.weight} and after {self.after}; expected a weight above zero and a part of "
                "the stage between 0 and 1 (leave Draft out to train no draft layer)"
            )
        if self.steps < 1:
            raise ValueError(f"Draft has steps {self.steps}; expected at least 1")

    def check(self, *, sequence_length: int, model: ModelConfig) -> None:
        """A draft layer, and rows in which the last step has a target."""
        if not model.num_nextn_predict_layers:
            raise ValueError("trains the draft layer, which the model lacks; leave Draft out of its objectives")
        if self.steps >= sequence_length:
            raise ValueError(
                f"has {self.steps} draft steps, which need rows of more than that many tokens; sequence_length is "
                f"{sequence_length}"
            )

    def draft_steps(self, progress: Progress, model: ModelConfig) -> int:
        """All of them, once the loss is on."""
        return self.steps if progress.step >= self.after * progress.steps else 0

    def terms(self, activations: Activations, seen: Observer) -> Sequence[Term]:
        """This micro-batch's share, once the loss is on."""
        states = activations.drafts[: self.draft_steps(activations.progress, activations.model.config)]
        if not states:
            return ()
        totals = draft_losses(activations.model, activations.batch, states)
        means = [total / activations.whole.count(step + 1) for step, total in enumerate(totals, start=1)]
        return [Term(name="draft_loss", value=torch.stack(means).mean(), weight=self.weight)]


def draft_losses(model: GlmMoeDsa, batch: Batch, states: Sequence[DraftState]) -> list[Tensor]:
    """Cross-entropy of each draft step, summed over targets.

    Slot i of step j predicts token i + j + 1; `states` are those of steps 1, 2, ... in order.
    """
    head = model.lm_head.weight.detach()
    return [
        next_token_loss(state.hidden, head, batch.targets(step + 1), count=1)
        for step, state in enumerate(states, start=1)
    ]
