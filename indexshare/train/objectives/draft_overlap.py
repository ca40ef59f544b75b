"""The draft layer's loss when it drafts several tokens a round: the accepted drafts that are missing, end to end.

Source: "Breaking Entropy Bounds" (arXiv 2606.12370), equations 12 and 13. With a_j the overlap of the laws of step j
and of the trunk at its place, rejection sampling accepts a_1 + a_1 a_2 + ... drafts of a round; the loss is one minus
this sum per step. From scratch its gradient is nearly zero where the laws hardly overlap, and step j sees the product
of all steps before it: cross-entropy goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare import ops
from indexshare.data.batch import IGNORE, Batch
from indexshare.model.draft.mtp import DraftState
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import Observer
from indexshare.train.objectives.base import Activations, Term
from indexshare.train.objectives.draft import Draft


@dataclass(frozen=True, kw_only=True)
class DraftOverlap(Draft):
    """Cross-entropy of all steps (`draft_loss`), then the end-to-end loss on total variation (`draft_tv_loss`).

    Trunk, embeddings and head are constants. Later steps reuse keys and selection of the first one and learn through
    all steps before them. Tokens in between are those of the text.

    Attributes:
        weight: factor of the loss.
        steps: drafts of a round.
        warm_up: part of the stage that learns by cross-entropy.
    """

    weight: float = 1.0
    steps: int = 3
    warm_up: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.warm_up <= 1.0:
            raise ValueError(f"DraftOverlap has warm_up {self.warm_up}; expected a part of the stage between 0 and 1")

    def terms(self, activations: Activations, seen: Observer) -> Sequence[Term]:
        """This micro-batch's share, once the loss is on."""
        progress = activations.progress
        if progress.step < self.warm_up * progress.steps:
            return super().terms(activations, seen)
        states = activations.drafts[: self.draft_steps(progress, activations.model.config)]
        if not states:
            return ()
        missing = missing_drafts(activations.model, activations.batch, activations.hidden, states)
        value = missing / activations.whole.count(len(states) + 1)
        return [Term(name="draft_tv_loss", value=value, weight=self.weight)]


def missing_drafts(model: GlmMoeDsa, batch: Batch, hidden: Tensor, states: Sequence[DraftState]) -> Tensor:
    """One minus the accepted drafts per step, summed over the slots at which every step has a target.

    Args:
        hidden: `[B * S, H]`, the trunk's output after its final norm.
        states: of steps 1, 2, ...; step j at slot i is compared with the trunk at i + j.
    """
    counted = batch.targets(len(states) + 1) != IGNORE
    overlaps = [
        ops.linear_overlap(state.hidden, _ahead(batch, hidden, step), model.lm_head.weight)
        for step, state in enumerate(states, start=1)
    ]
    accepted = torch.stack(overlaps).cumprod(0).sum(0)
    return torch.where(counted, 1 - accepted / len(states), 0.0).sum()


def _ahead(batch: Batch, hidden: Tensor, shift: int) -> Tensor:
    """The trunk's rows `shift` places ahead in each row of the batch; any at its end."""
    return hidden.detach().unflatten(0, (batch.rows, batch.length)).roll(-shift, dims=1).flatten(0, 1)
