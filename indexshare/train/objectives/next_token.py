"""The language-modelling loss: cross-entropy of the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from indexshare.model.observe import Observer
from indexshare.train.losses import next_token_loss
from indexshare.train.objectives.base import Activations, Objective, Term


@dataclass(frozen=True, kw_only=True)
class NextToken(Objective):
    """Mean cross-entropy of the targets of a batch, in nats: the metric `loss`.

    Attributes:
        weight: factor of the loss.
    """

    trains = ("trunk",)
    weight: float = 1.0

    def terms(self, activations: Activations, seen: Observer) -> Sequence[Term]:
        """This micro-batch's share."""
        head, batch = activations.model.lm_head.weight, activations.batch
        loss = next_token_loss(activations.hidden, head, batch.targets(), count=activations.whole.count())
        return [Term(name="loss", value=loss, weight=self.weight)]
