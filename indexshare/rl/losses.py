"""Losses of policy and critic on the trained tokens of a batch; `losses_reference` says the same token by token.

All take one value per trained token: what is masked is left out before. `weights` add up to one over the whole batch,
so that the losses of its micro-batches add up to the loss of the batch however it is cut (`credit.token_weights`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from indexshare.config.fields import check_fields

LOGIT_BYTES = 32 << 20  # of float32 logits held at once
_FAR = 60.0  # a log ratio whose exponential is still a number


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """What is done with the ratio of the trained policy's probability to that of the policy that sampled.

    Attributes:
        kind: `direct` (SAO; GLM-5 report, section 4.1): a token counts by its ratio, without a gradient through it,
            where that lies between `low` and `high`, and not at all elsewhere, whatever the sign of its advantage; it
            stays in the denominator. `clip` (PPO): the smaller of the surrogate with the ratio and with the ratio
            clipped to the bounds, so that a token stops counting only where it has gone far enough already.
        low, high: the bounds. SAO has 0.7 to 6 for mathematics and tools, 0.2 to 4 for code; PPO as a rule 0.8 to 1.28.
    """

    kind: Literal["direct", "clip"] = "direct"
    low: float = 0.7
    high: float = 6.0

    def __post_init__(self) -> None:
        check_fields(self, "ratio: ")
        if not 0.0 <= self.low < 1.0 < self.high:
            raise ValueError(f"ratio: bounds are {self.low} and {self.high}; expected 0 <= low < 1 < high")


def token_logprobs(hidden: Tensor, head: Tensor, targets: Tensor, *, rows: int | None = None) -> Tensor:
    """Log-probability of each target, float32 or wider [N], with a graph; logits are made again in the backward pass.

    Args:
        hidden: [N, H], inputs of the head that predict the targets.
        head: [V, H].
        targets: int64 [N].
        rows: at a time; by default as many as fit into `LOGIT_BYTES`.
    """
    rows = rows or max(1, LOGIT_BYTES // (4 * head.shape[0]))
    pairs = zip(hidden.split(rows), targets.split(rows), strict=True)
    parts = [made_again(_chosen, h, head, t) for h, t in pairs]
    return torch.cat(parts) if parts else wide(hidden).sum(-1)  # of no rows, and with a graph


def made_again(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """The function's result, whose inner values are computed again in the backward pass in place of being kept."""
    # The functions draw nothing, and micro-batches in threads must not set the generator's state under one another.
    result = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(result, Tensor)
    return result


def wide(logits: Tensor) -> Tensor:
    """In float32, or float64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _chosen(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    logits = wide(F.linear(hidden, head))
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)


@torch.no_grad()
def token_entropies(hidden: Tensor, head: Tensor) -> Tensor:
    """Entropy of each row's distribution in nats, [N], for metrics; shapes as in `token_logprobs`."""
    rows = max(1, LOGIT_BYTES // (4 * head.shape[0]))
    parts = []
    for part in hidden.split(rows):
        logs = wide(F.linear(part, head)).log_softmax(-1)
        parts.append(-(logs.exp() * logs).sum(-1))
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def policy_loss(logprobs: Tensor, behaviour: Tensor, advantages: Tensor, weights: Tensor, ratio: Ratio) -> Tensor:
    """Scalar whose gradient is the policy's.

    Args:
        logprobs: [N] under the trained policy, with a graph.
        behaviour: [N] under the policy that sampled, as it was recorded then.
        advantages: [N].
        weights: [N].
        ratio: see `Ratio`.
    """
    if ratio.kind == "direct":
        kept = kept_ratio(logprobs, behaviour, ratio)
        return -(weights * kept * advantages * logprobs).sum()
    moved = (logprobs - behaviour).clamp(max=_FAR).exp()
    surrogate = torch.minimum(moved * advantages, moved.clamp(ratio.low, ratio.high) * advantages)
    return -(weights * surrogate).sum()


@torch.no_grad()
def kept_ratio(logprobs: Tensor, behaviour: Tensor, ratio: Ratio) -> Tensor:
    """The ratio between the bounds, 0 outside, [N]; without a graph."""
    found = (logprobs - behaviour).exp()
    return torch.where((found > ratio.low) & (found < ratio.high), found, torch.zeros_like(found))


def value_loss(
    values: Tensor, targets: Tensor, weights: Tensor, *, before: Tensor | None = None, clip: float | None = None
) -> Tensor:
    """Half the weighted squared error of the critic, a scalar.

    Args:
        values: [N], with a graph.
        targets: [N].
        weights: [N].
        before: [N], values when the targets were made; only with `clip`.
        clip: most that counts of a change from `before`; the larger of both errors is taken (as in PPO).
    """
    error = (values - targets).square()
    if clip is not None and before is not None:
        near = before + (values - before).clamp(-clip, clip)
        error = torch.maximum(error, (near - targets).square())
    return 0.5 * (weights * error).sum()
