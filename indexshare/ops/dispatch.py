"""Which implementation answers for an operation: a table, a choice that can be forced, and an explanation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from indexshare.ops.experts import reference as experts_reference
from indexshare.ops.experts import torch_impl as experts_torch
from indexshare.ops.indexer import recent as indexer_recent
from indexshare.ops.indexer import reference as indexer_reference
from indexshare.ops.indexer import torch_impl as indexer_torch
from indexshare.ops.sparse_mla import reference as mla_reference
from indexshare.ops.sparse_mla import torch_impl as mla_torch

_IMPLEMENTATIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "select_topk": {
        "torch": indexer_torch.select_topk,
        "reference": indexer_reference.select_topk,
        "recent": indexer_recent.select_topk,  # another choice on purpose; used only when forced
    },
    "sparse_mla": {
        "torch": mla_torch.sparse_mla,
        "reference": lambda *args: mla_reference.sparse_mla(*args)[0],
    },
    "route": {"torch": experts_torch.route, "reference": experts_reference.route},
    "experts": {"torch": experts_torch.experts, "reference": experts_reference.experts},
}

_forced: ContextVar[str | None] = ContextVar("forced_implementation", default=None)


@contextmanager
def force(name: str) -> Iterator[None]:
    """Within the block every operation uses the implementation called `name` (`"reference"` or `"torch"`).

    Operations without one of that name keep theirs. `"recent"` is no implementation of the same contract but a
    control: the selection is replaced by the most recent tokens (`ops/indexer/recent.py`).

    Raises:
        ValueError: no operation has an implementation of that name.
    """
    known = sorted({key for table in _IMPLEMENTATIONS.values() for key in table})
    if name not in known:
        raise ValueError(f"no implementation is called {name!r}; there are {known}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def explain() -> list[dict[str, str]]:
    """One row per operation: its name, the implementation in use, and why."""
    rows = []
    for op, table in _IMPLEMENTATIONS.items():
        reason = "forced" if _forced.get() in table else "fastest implementation in this version"
        rows.append({"op": op, "implementation": _name(table), "reason": reason})
    return rows


def _name(table: dict[str, Callable[..., Any]]) -> str:
    forced = _forced.get()
    return forced if forced in table else next(iter(table))


def _implementation(op: str) -> Callable[..., Any]:
    table = _IMPLEMENTATIONS[op]
    return table[_name(table)]


def select_topk(q: Tensor, weights: Tensor, keys: Tensor, positions: Tensor, topk: int) -> Tensor:
    """Exact causal top-k of the lightning indexer, int64 `[Q, topk]`. Contract: `ops/indexer/reference.py`."""
    return _implementation("select_topk")(q, weights, keys, positions, topk)


def sparse_mla(q: Tensor, pool: Tensor, slots: Tensor, scale: float, value_dim: int) -> Tensor:
    """Latent attention over chosen rows, `[Q, A, C]`. Contract: `ops/sparse_mla/reference.py`."""
    return _implementation("sparse_mla")(q, pool, slots, scale, value_dim)


def route(
    scores: Tensor, bias: Tensor, *, topk: int, groups: int, topk_groups: int, normalise: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Expert ids and weights `[N, k]`. Contract: `ops/experts/reference.py`."""
    return _implementation("route")(
        scores, bias, topk=topk, groups=groups, topk_groups=topk_groups, normalise=normalise, scale=scale
    )


def experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Weighted sum of the chosen experts `[N, H]`. Contract: `ops/experts/reference.py`."""
    return _implementation("experts")(x, ids, weights, gate_up, down)
