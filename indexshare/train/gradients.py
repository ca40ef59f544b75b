"""Where losses become gradients, and the one place where what micro-batches contribute to an update is added up.

Gradients are asked for (`torch.autograd.grad`) and not left to accumulate (`loss.backward()`), because the
micro-batches of an update run in threads on the same parameters:

- `backward` in several threads adds into the same `.grad` in whatever order they finish, so no two runs agree; here
  contributions are added in the order of the micro-batches.
- `.grad` has the parameter's dtype, and a sum of many bfloat16 gradients loses what is small; here they are added in
  float32, in the optimizer's masters.

What this passes by are the hooks of DistributedDataParallel and FSDP, which run in `backward` alone: a model wrapped in
them would train on, every process by its own gradients, without an error. So a distributed backend takes the place of
this class; wrapping the model is not enough.

- Where every process holds all parameters, `finish` is where it differs: one sum over the processes of the float32
  gradients, the metrics and the tallies of the whole update (a parameter without a gradient counts as zeros), in place
  of one sum for each micro-batch in the parameters' dtype.
- Where parameters are sharded, `gradients` is where it differs: a gathered parameter has a gradient for a moment
  only, and the hook that scatters it runs in `backward`. There that form is right, and what the hooks leave in `.grad`
  is the result.

In both cases the processes must divide by numbers of one batch, that of all of them together (`Activations.whole`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.train.objectives import Tally
from indexshare.train.optim import MixedOptimizer


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one micro-batch adds to an update.

    Attributes:
        gradients: of the optimizer's parameters in their order; None where the loss does not reach one.
        metrics: shares of means, by name.
        tallies: of each objective, in the order of the stage.
    """

    gradients: Sequence[Tensor | None]
    metrics: dict[str, float]
    tallies: Sequence[Tally]


class Gradients:
    """Of one update, summed in the optimizer's masters.

    Args:
        optimizer: over the parameters that are trained.
    """

    def __init__(self, optimizer: MixedOptimizer) -> None:
        self._optimizer = optimizer
        self._metrics: dict[str, float] = defaultdict(float)
        self._tallies: list[dict[str, Tensor]] = []

    def gradients(self, loss: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of a micro-batch's loss; runs in a worker's thread and frees the graph."""
        return torch.autograd.grad(loss, self._optimizer.parameters, allow_unused=True)

    def add(self, contribution: Contribution) -> None:
        """Take in the next micro-batch, in order."""
        self._optimizer.accumulate(contribution.gradients)
        for name, value in contribution.metrics.items():
            self._metrics[name] += value
        self._tallies = self._tallies or [{} for _ in contribution.tallies]
        for total, tally in zip(self._tallies, contribution.tallies, strict=True):
            for name, values in tally.items():
                total[name] = total[name] + values if name in total else values

    def finish(self) -> tuple[dict[str, float], Sequence[Tally]]:
        """Metrics and tallies of the whole update."""
        return dict(self._metrics), self._tallies
