"""Parameter groups, float32 master copies, gradient accumulation and clipping, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from indexshare.config.fields import check_fields
from indexshare.config.layers import INDEXER, LayerTensor, Role, model_tensors
from indexshare.config.model import ModelConfig
from indexshare.train.muon import Muon, split_rows


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """How parameters are updated.

    Attributes:
        muon_lr: peak rate of the matrices under Muon; 0 puts them under AdamW at `adam_lr`.
        adam_lr: peak rate of embeddings, head, norms and biases.
        router_lr: peak rate of the experts' routers; a fast router sends all tokens to a few experts before the
            correction bias can follow.
        indexer_lr: peak rate of the indexers.
        weight_decay: decoupled, of matrices; norms, biases and the router have none.
        betas: of AdamW.
        momentum: of Muon.
        clip_norm: largest norm of the whole gradient; indexers are clipped apart from the rest.
    """

    muon_lr: float = 3e-3
    adam_lr: float = 3e-3
    router_lr: float = 3e-4
    indexer_lr: float = 3e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.95
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, "optim: ")
        for name in ("muon_lr", "adam_lr", "router_lr", "indexer_lr", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected zero or more")
        if self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; expected a positive norm (large to clip nothing)")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning-rate factor over one stage.

    Attributes:
        kind: `wsd` (warm-up, stable, linear decay), `cosine`, or `constant`, all after the warm-up.
        warmup: part of the stage's steps spent rising linearly from zero.
        decay: part of the stage's steps spent falling (wsd only).
        final: factor at the end.
    """

    kind: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup: float = 0.02
    decay: float = 0.3
    final: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "schedule: ")
        for name in ("warmup", "decay", "final"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"schedule {name} is {getattr(self, name)}; expected a part between 0 and 1")

    def factor(self, step: int, steps: int) -> float:
        """Factor for the update number `step` (from 0) of `steps`."""
        warmup = max(1, round(self.warmup * steps))
        if step < warmup:
            return (step + 1) / warmup
        if self.kind == "constant":
            return 1.0
        if self.kind == "cosine":
            done = (step - warmup) / max(1, steps - warmup)
            return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))
        length = max(1, round(self.decay * steps))
        left = min(1.0, (steps - step) / (length + 1))
        return self.final + (1.0 - self.final) * left


def is_indexer(name: str) -> bool:
    """Whether a parameter belongs to an indexer."""
    return INDEXER in name


def _muon_split(row: LayerTensor) -> Callable[[Tensor], list[Tensor]] | None:
    """How the parts of a matrix that stand for themselves, heads for instance, are updated apart."""
    if row.heads > 1:
        return split_rows(row.split or (row.shape[0] // row.heads,), row.heads)
    return (lambda matrix: list(matrix.split(row.split, dim=-2))) if row.split else None


class MixedOptimizer:
    """AdamW and Muon over float32 master copies of a model's trainable parameters.

    Gradients of micro-batches are added up in float32 in the masters (`accumulate`), so any split of a batch gives
    the same sum up to rounding, whatever the model's dtype. `clip` scales them down, `step` updates the masters and
    rounds them back into the model. Parameters of dtype float32 are their own masters.
    """

    def __init__(self, model: nn.Module, config: ModelConfig, optim: OptimConfig) -> None:
        self.optim = optim
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("no parameter of the model requires a gradient; unfreeze what the stage trains")
        self._pairs = {n: (p, p if p.dtype == torch.float32 else p.detach().float().clone()) for n, p in named}
        masters = {n: master for n, (_, master) in self._pairs.items()}
        adam, muon = _groups(masters, config, optim)
        self._adam = torch.optim.AdamW(adam, betas=optim.betas, fused=True)
        # A machine that emulates bfloat16 trains in float32; its products in bfloat16 would take longer than the rest.
        precision = {p.dtype for _, p in named if p.ndim >= 2}
        products = torch.bfloat16 if torch.bfloat16 in precision else torch.float32
        self._muon = Muon(muon, lr=optim.muon_lr, momentum=optim.momentum, ns_dtype=products) if muon else None

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self._adam] if self._muon is None else [self._adam, self._muon]

    @property
    def parameters(self) -> list[Tensor]:
        """The model's trainable parameters, in the order in which `accumulate` takes gradients."""
        return [p for p, _ in self._pairs.values()]

    @property
    def masters(self) -> dict[str, Tensor]:
        """The float32 weights by the parameters' names."""
        return {name: master for name, (_, master) in self._pairs.items()}

    @torch.no_grad()
    def replace(self, weights: Mapping[str, Tensor]) -> None:
        """Other weights of the same names, in the masters and in the model."""
        for name, (p, master) in self._pairs.items():
            master.copy_(weights[name])
            if p is not master:
                p.copy_(master)

    def accumulate(self, grads: Sequence[Tensor | None]) -> None:
        """Add gradients of the model's parameters, in any float dtype, to the masters' float32 gradients."""
        for (_, master), grad in zip(self._pairs.values(), grads, strict=True):
            if grad is None:
                continue
            if master.grad is None:
                master.grad = grad.to(torch.float32, copy=True)
            else:
                master.grad.add_(grad)

    def clip(self) -> dict[str, float]:
        """Scale the gradients down to `clip_norm`, indexers apart from the rest.

        Returns:
            `grad_norm` (without indexers) and `indexer_grad_norm`, before clipping, where there are such gradients.
            A norm that is not finite has spoilt the gradients: do not `step` then.
        """
        norms = {}
        for label, wanted in (("grad_norm", False), ("indexer_grad_norm", True)):
            chosen = [m for n, (_, m) in self._pairs.items() if is_indexer(n) == wanted and m.grad is not None]
            if chosen:
                norms[label] = float(nn.utils.clip_grad_norm_(chosen, self.optim.clip_norm))
        return norms

    def step(self, factor: float) -> None:
        """Update the masters, forget their gradients, and write back to the model.

        Args:
            factor: of every group's peak learning rate.
        """
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for p, master in self._pairs.values():
                if p is not master:
                    p.copy_(master)

    def state_dict(self) -> dict[str, Any]:
        """Masters and the optimizers' own states, exact; `split` functions are rebuilt, not saved."""
        states = [optimizer.state_dict() for optimizer in self._optimizers]
        for state in states:
            state["param_groups"] = [{k: v for k, v in g.items() if k != "split"} for g in state["param_groups"]]
        masters = {n: master.detach() for n, (_, master) in self._pairs.items()}
        return {"masters": masters, "optimizers": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, and the model's parameters from the masters.

        Learning rates and all other settings stay those of this optimizer's configuration, which may have been
        changed since (a lower rate after a run that diverged).

        Raises:
            ValueError: the state is of other parameters.
        """
        if state["masters"].keys() != self._pairs.keys():
            different = sorted(set(state["masters"]) ^ set(self._pairs))
            raise ValueError(f"optimizer state is of other parameters, for instance {different[:3]}")
        shapes = [[len(g["params"]) for g in saved["param_groups"]] for saved in state["optimizers"]]
        if shapes != [[len(g["params"]) for g in optimizer.param_groups] for optimizer in self._optimizers]:
            raise ValueError("optimizer state is of other parameter groups; was Muon switched on or off since?")
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, own in zip(optimizer.param_groups, settings, strict=True):
                group.update(own)
        self.replace(state["masters"])


def _rate_name(name: str, row: LayerTensor | None, optim: OptimConfig) -> str:
    """The setting with a parameter's rate; of one that the table of layers lacks, the indexer's or the plain one."""
    if row is None:
        return "indexer_lr" if is_indexer(name) else "adam_lr"
    if row.is_orthogonal and optim.muon_lr > 0:
        return "muon_lr"
    return "router_lr" if row.role is Role.ROUTER else "indexer_lr" if row.part == "indexer" else "adam_lr"


def _groups(
    masters: dict[str, Tensor], config: ModelConfig, optim: OptimConfig
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Groups of AdamW and of Muon, by what parameters are and never by the values of rates: a saved state fits again.

    Muon has a group for each matrix; AdamW has norms, biases, embeddings, head, router and indexers.
    """
    rows = {row.name: row for row in model_tensors(config)}
    by_kind: dict[tuple[str, bool], list[Tensor]] = {}
    muon = []
    for name, master in masters.items():
        rate = _rate_name(name, rows.get(name), optim)
        if rate == "muon_lr":
            muon.append(_group([master], optim, rate, decays=True) | {"split": _muon_split(rows[name])})
        else:
            by_kind.setdefault((rate, master.ndim >= 2 and rate != "router_lr"), []).append(master)
    return [_group(params, optim, rate, decays=decays) for (rate, decays), params in by_kind.items()], muon


def _group(params: list[Tensor], optim: OptimConfig, rate: str, *, decays: bool) -> dict[str, Any]:
    lr = getattr(optim, rate)
    return {"params": params, "lr": lr, "peak_lr": lr, "weight_decay": optim.weight_decay if decays else 0.0}
