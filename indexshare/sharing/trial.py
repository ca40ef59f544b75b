"""Plans of sharing on trial: the loss of a model under each, with everything below the first changed layer reused.

A model runs layer by layer over batches of windows. What enters each layer under the plan at hand (the *base*) is kept,
so that another plan runs only from the first layer in which it differs. Losses are those of whole passes, bit for bit:
the layers below see the same numbers.
Shape letters: W windows, T targets of a window, M rows with a selection, k chosen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from indexshare.cache.view import InFlightView
from indexshare.config.share_plan import SharePlan
from indexshare.model.forward_pass import ForwardPass
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selection import Selection
from indexshare.sharing.state_file import StateFile
from indexshare.train.losses import token_losses

_BATCH_TOKENS = 4096  # of the windows that run together
_SAVE_SECONDS = 20.0
Progress = Callable[[int], None]


@dataclass(frozen=True)
class _Entry:
    """What enters a layer: x `[N, hidden]`, and slots int32 `[M, k]` of the selection that comes with it, if any."""

    x: Tensor
    slots: Tensor | None


@dataclass
class _Batch:
    """Windows that run together; `path` has what enters each layer under the base plan, as far as that is known."""

    ids: Tensor
    targets: Tensor
    lengths: list[int]
    path: list[_Entry] = field(default_factory=list)


class Trial:
    """Losses of a model's text under plans of sharing.

    Args:
        model: in evaluation mode; every layer that is Full in some plan has an indexer.
        windows: int64 `[W, T + 1]`.
        counted: of each window's targets, the last so many count; None for all.
        memory: bytes that may be kept of activations; windows beyond are run from the first layer again.
        state: losses that were found before are taken from here, and new ones kept.
        progress: told the layer evaluations so far.

    Attributes:
        base: the plan whose activations are kept.
        evaluations: layers run, each over one window.
    """

    def __init__(
        self, model: GlmMoeDsa, windows: Tensor, *, counted: int | None = None, memory: int = 2 << 30,
        state: StateFile | None = None, progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.model, self.base = model, model.plan
        self._length = windows.shape[1] - 1
        self._counted = self._length if counted is None else counted
        self._state, self._progress = state or StateFile(None, {}), progress
        self._saved_at = time.monotonic()
        device = model.embed_tokens.weight.device
        self._batches = [
            _Batch(part[:, :-1].reshape(-1).to(device), part[:, 1:].reshape(-1).to(device), [self._length] * len(part))
            for part in windows.split(max(1, _BATCH_TOKENS // self._length))
        ]
        self._room = memory // max(1, self._path_bytes(self._batches[0]))
        self._known: dict[str, dict[int, list[float]]] = {
            pattern: {int(number): list(values) for number, values in batches.items()}
            for pattern, batches in self._state.found.get("losses", {}).items()
        }
        self.evaluations = int(self._state.found.get("evaluations", 0))

    @property
    def batches(self) -> int:
        """Groups of windows that run together."""
        return len(self._batches)

    @property
    def windows(self) -> int:
        """Windows in all."""
        return sum(len(batch.lengths) for batch in self._batches)

    def windows_of(self, batches: int) -> int:
        """Windows in the first so many batches."""
        return sum(len(batch.lengths) for batch in self._batches[:batches])

    def rebase(self, plan: SharePlan) -> None:
        """Let `plan` be the one whose activations are kept; those below its first change stay as they are."""
        first = first_change(self.base, plan)
        for batch in self._batches:
            del batch.path[first + 1 :]
        self.base = plan

    def losses(self, plans: Sequence[SharePlan], batch: int) -> list[list[float]]:
        """Mean loss of each window of a batch in nats, under each plan."""
        for plan in plans:
            if batch not in self._known.setdefault(plan.pattern, {}):
                self._known[plan.pattern][batch] = self._run(plan, batch)
                self._keep()
        if batch >= self._room:
            self._batches[batch].path.clear()
        return [self._known[plan.pattern][batch] for plan in plans]

    def loss(self, plan: SharePlan) -> float:
        """Mean loss over all windows."""
        values = [value for number in range(self.batches) for value in self.losses([plan], number)[0]]
        return sum(values) / len(values)

    def keep_now(self) -> None:
        """Write the losses so far."""
        losses = {
            pattern: {str(n): values for n, values in batches.items()} for pattern, batches in self._known.items()
        }
        self._state.save({"losses": losses, "evaluations": self.evaluations})
        self._saved_at = time.monotonic()

    def _keep(self) -> None:
        if time.monotonic() - self._saved_at > _SAVE_SECONDS:
            self.keep_now()
        if self._progress is not None:
            self._progress(self.evaluations)

    @torch.no_grad()
    def _run(self, plan: SharePlan, number: int) -> list[float]:
        """One plan over one batch, from the first layer in which it differs from the base."""
        batch, first = self._batches[number], first_change(self.base, plan)
        last = len(self.model.layers) - 1
        if len(batch.path) <= min(first, last):
            self._extend(batch, min(first, last))
        x = self._walk(batch, plan, batch.path[min(first, last)], min(first, last))
        hidden = self.model.norm(x)
        each = token_losses(hidden, self.model.lm_head.weight, batch.targets).double().view(len(batch.lengths), -1)
        return each[:, -self._counted :].mean(1).tolist()

    def _extend(self, batch: _Batch, last: int) -> None:
        """Run the base on, until the path has what enters layer `last`."""
        path = batch.path
        if not path:
            path.append(_Entry(self.model.embed_tokens(batch.ids), None))
        pass_ = self._pass(batch, self.base)
        x, selection = path[-1].x, self._selection(batch, path[-1], pass_.limit)
        for layer in range(len(path) - 1, last):
            x, selection = self.model.layers[layer](x, pass_, selection)
            self.evaluations += len(batch.lengths)
            inherited = path[layer].slots if not self.base.is_full(layer) else None
            path.append(_Entry(x, selection.slots.int() if inherited is None else inherited))

    def _walk(self, batch: _Batch, plan: SharePlan, entry: _Entry, start: int) -> Tensor:
        """Run a plan from layer `start`, which `entry` enters, to the end."""
        pass_ = self._pass(batch, plan)
        x, selection = entry.x, self._selection(batch, entry, pass_.limit)
        for layer in self.model.layers[start:]:
            x, selection = layer(x, pass_, selection)
            self.evaluations += len(batch.lengths)
        return x

    def _pass(self, batch: _Batch, plan: SharePlan) -> ForwardPass:
        view = InFlightView(batch.lengths, batch.ids.device)
        return replace(ForwardPass.begin(self.model.config, view), reusing=frozenset(plan.shared_layers))

    def _selection(self, batch: _Batch, entry: _Entry, limit: int) -> Selection | None:
        """The selection that enters a layer, from its slots."""
        if entry.slots is None:
            return None
        device, length = entry.x.device, self._length
        starts = torch.arange(0, len(batch.lengths) * length, length, device=device)
        rows = (starts[:, None] + torch.arange(min(limit, length), length, device=device)).flatten()
        slots = entry.slots.long()
        return Selection(limit, rows, slots - (rows // length * length)[:, None], slots)

    def _path_bytes(self, batch: _Batch) -> int:
        config, rows = self.model.config, batch.ids.numel()
        width = config.hidden_size * self.model.embed_tokens.weight.element_size() + 4 * config.index_topk
        return config.num_hidden_layers * rows * width


def first_change(one: SharePlan, other: SharePlan) -> int:
    """The first layer in which two plans differ; the number of layers if in none."""
    pairs = enumerate(zip(one.types, other.types, strict=True))
    return next((layer for layer, (a, b) in pairs if a != b), one.num_layers)


def changed(plan: SharePlan, *layers: int) -> SharePlan:
    """The plan with these layers Shared instead of Full, or Full instead of Shared."""
    letters = list(plan.pattern)
    for layer in layers:
        letters[layer] = "S" if letters[layer] == "F" else "F"
    return SharePlan.from_pattern("".join(letters))
