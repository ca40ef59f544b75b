"""Parameter groups, float32 master copies, gradient accumulation and clipping, and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from indexshare.config.fields import check_fields
from indexshare.config.model import ModelConfig
from indexshare.train.muon import Muon, split_rows

# Matrices updated by Muon; everything else (embeddings, head, norms, biases, router, indexer) by AdamW.
_MUON_SUFFIXES = (
    "q_a_proj.weight",
    "q_b_proj.weight",
    "q_proj.weight",
    "kv_a_proj_with_mqa.weight",
    "kv_b_proj.weight",
    "o_proj.weight",
    "gate_proj.weight",
    "up_proj.weight",
    "down_proj.weight",
    "experts.gate_up_proj",
    "experts.down_proj",
    "eh_proj.weight",
)


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
    return ".indexer." in name


def _is_muon(name: str) -> bool:
    return name.endswith(_MUON_SUFFIXES) and not is_indexer(name)


def _muon_split(name: str, config: ModelConfig) -> Callable[[Tensor], list[Tensor]] | None:
    heads = config.num_attention_heads
    if name.endswith("kv_b_proj.weight"):
        return split_rows((config.qk_nope_head_dim, config.v_head_dim), heads)
    if name.endswith(("q_b_proj.weight", "q_proj.weight")):
        return split_rows((config.qk_nope_head_dim + config.qk_rope_head_dim,), heads)
    if name.endswith("gate_up_proj"):
        return lambda matrix: list(matrix.chunk(2, dim=-2))
    return None


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
        self._adam = torch.optim.AdamW(list(_adam_groups(masters, optim)), betas=optim.betas, fused=True)
        muon = list(_muon_groups(masters, config, optim))
        self._muon = Muon(muon, lr=optim.muon_lr, momentum=optim.momentum) if muon else None

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self._adam] if self._muon is None else [self._adam, self._muon]

    @property
    def parameters(self) -> list[Tensor]:
        """The model's trainable parameters, in the order in which `accumulate` takes gradients."""
        return [p for p, _ in self._pairs.values()]

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
        with torch.no_grad():
            for name, (p, master) in self._pairs.items():
                master.copy_(state["masters"][name])
                if p is not master:
                    p.copy_(master)


def _adam_groups(masters: dict[str, Tensor], optim: OptimConfig) -> Iterable[dict[str, Any]]:
    """Groups by what the parameters are, never by the values of rates: a saved state finds its place again."""
    by_kind: dict[tuple[str, bool], list[Tensor]] = {}
    for name, master in masters.items():
        if _is_muon(name) and optim.muon_lr > 0:
            continue
        router = name.endswith("mlp.gate.weight")
        kind = "router_lr" if router else "indexer_lr" if is_indexer(name) else "adam_lr"
        by_kind.setdefault((kind, master.ndim >= 2 and not router), []).append(master)
    for (kind, decays), params in by_kind.items():
        lr = getattr(optim, kind)
        yield {"params": params, "lr": lr, "peak_lr": lr, "weight_decay": optim.weight_decay if decays else 0.0}


def _muon_groups(masters: dict[str, Tensor], config: ModelConfig, optim: OptimConfig) -> Iterable[dict[str, Any]]:
    if optim.muon_lr <= 0:
        return
    for name, master in masters.items():
        if _is_muon(name):
            yield {
                "params": [master],
                "lr": optim.muon_lr,
                "peak_lr": optim.muon_lr,
                "weight_decay": optim.weight_decay,
                "split": _muon_split(name, config),
            }
