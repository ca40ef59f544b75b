"""What an update of reinforcement learning optimises, for the training room's loop of micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from indexshare.model.observe import Observer
from indexshare.rl.batch import column, trained_rows
from indexshare.rl.critic import Critic
from indexshare.rl.losses import Ratio, kept_ratio, policy_loss, token_entropies, token_logprobs, value_loss
from indexshare.train.objectives import Activations, Objective, Term


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Objective):
    """The policy's loss: metric `policy_loss`. Needs the columns `behaviour`, `advantage` and `weight`.

    Also reported, as means by weight: `entropy`, `kept` (share of tokens that the ratio's bounds let count) and
    `approximate_kl` from the policy that sampled.

    Attributes:
        ratio: what is done with the ratio to the policy that sampled.
    """

    trains = ("trunk",)
    ratio: Ratio = field(default_factory=Ratio)

    def terms(self, activations: Activations, seen: Observer) -> Sequence[Term]:
        """This micro-batch's share."""
        batch, head = activations.batch, activations.model.lm_head.weight
        rows = trained_rows(batch)
        hidden, targets = activations.hidden[rows], batch.targets()[rows]
        behaviour, advantages, weights = (column(batch, name)[rows] for name in ("behaviour", "advantage", "weight"))
        logprobs = token_logprobs(hidden, head, targets)
        loss = policy_loss(logprobs, behaviour, advantages, weights, self.ratio)
        with torch.no_grad():
            moved = logprobs - behaviour
            numbers = {
                "entropy": token_entropies(hidden.detach(), head.detach()),
                "kept": (kept_ratio(logprobs, behaviour, self.ratio) > 0).float(),
                "approximate_kl": moved.exp() - 1 - moved,
            }
        shares = [Term(name=n, value=(weights * v).sum(), weight=None) for n, v in numbers.items()]
        return [Term(name="policy_loss", value=loss), *shares]


@dataclass(frozen=True, kw_only=True)
class ValueRegression(Objective):
    """The critic's loss: metric `value_loss`. Needs the columns `target`, `weight`, and with a clip `value`.

    Attributes:
        clip: see `losses.value_loss`.
    """

    trains = ("trunk",)
    clip: float | None = None

    def terms(self, activations: Activations, seen: Observer) -> Sequence[Term]:
        """This micro-batch's share."""
        batch, critic = activations.batch, activations.model
        assert isinstance(critic, Critic)
        rows = trained_rows(batch)
        targets, weights, before = (column(batch, name)[rows] for name in ("target", "weight", "value"))
        values = critic.values(activations.hidden[rows])
        return [Term(name="value_loss", value=value_loss(values, targets, weights, before=before, clip=self.clip))]
