"""Which implementation answers for an operation: a table, a choice that can be forced, and an explanation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

from indexshare.ops import elementwise
from indexshare.ops.experts import cpu_impl as experts_cpu
from indexshare.ops.experts import reference as experts_reference
from indexshare.ops.experts import torch_impl as experts_torch
from indexshare.ops.indexer import cpu_impl as indexer_cpu
from indexshare.ops.indexer import recent as indexer_recent
from indexshare.ops.indexer import reference as indexer_reference
from indexshare.ops.indexer import torch_impl as indexer_torch
from indexshare.ops.native import native
from indexshare.ops.rows import cpu_impl as rows_cpu
from indexshare.ops.sparse_mla import cpu_impl as mla_cpu
from indexshare.ops.sparse_mla import reference as mla_reference
from indexshare.ops.sparse_mla import torch_impl as mla_torch

# Implementations by operation, the preferred one first. "cpu" is C++ and may refuse a call; the others take all.
_IMPLEMENTATIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "select_topk": {
        "cpu": indexer_cpu.select_topk,
        "torch": indexer_torch.select_topk,
        "reference": indexer_reference.select_topk,
        "recent": indexer_recent.select_topk,  # another choice on purpose; used only when forced
    },
    "sparse_mla": {
        "cpu": mla_cpu.sparse_mla,
        "torch": mla_torch.sparse_mla,
        "reference": lambda *args: mla_reference.sparse_mla(*args)[0],
    },
    "route": {"cpu": experts_cpu.route, "torch": experts_torch.route, "reference": experts_reference.route},
    "experts": {"cpu": experts_cpu.experts, "torch": experts_torch.experts, "reference": experts_reference.experts},
    "rms_norm": {
        "cpu": rows_cpu.rms_norm,
        "torch": elementwise.rms_norm,
        "reference": elementwise.rms_norm_reference,
    },
    "apply_rope": {"cpu": rows_cpu.apply_rope, "torch": elementwise.apply_rope},
    "swiglu": {"cpu": rows_cpu.swiglu, "torch": elementwise.swiglu},
    "wide_linear": {"cpu": rows_cpu.wide_linear, "torch": elementwise.wide_linear},
}
_UNSUPPORTED: dict[str, Callable[..., str | None]] = {
    "select_topk": indexer_cpu.unsupported,
    "sparse_mla": mla_cpu.unsupported,
    "route": experts_cpu.route_unsupported,
    "experts": experts_cpu.experts_unsupported,
    "rms_norm": rows_cpu.unsupported,
    "apply_rope": rows_cpu.unsupported,
    "swiglu": rows_cpu.unsupported,
    "wide_linear": rows_cpu.wide_linear_unsupported,
}

_forced: ContextVar[str | None] = ContextVar("forced_implementation", default=None)


@contextmanager
def force(name: str) -> Iterator[None]:
    """Within the block every operation that has an implementation called `name` uses it.

    Names are `"cpu"` (the C++ kernels), `"torch"` and `"reference"`. A forced kernel that cannot take a call raises.
    `"recent"` is no implementation of the same contract but a control: the selection is replaced by the most recent
    tokens (`ops/indexer/recent.py`), and the other operations stay as they are.

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
    """One row per operation: its name, the implementation that CPU calls use, and why."""
    rows = []
    for op, table in _IMPLEMENTATIONS.items():
        name, reason = next(iter(table)), "the only fast one" if "cpu" not in table else native().reason
        if name == "cpu" and native().library is None:
            name, reason = "torch", f"C++ kernels {native().reason}"
        if _forced.get() in table:
            name, reason = str(_forced.get()), "forced"
        rows.append({"op": op, "implementation": name, "reason": reason})
    refusal = decode_step_refusal()
    rows.append({"op": "decode step", "implementation": "torch", "reason": refusal or ""})
    if refusal is None:
        rows[-1] |= {"implementation": "cpu", "reason": f"all layers in one call, {native().reason}"}
    return rows


def decode_step_refusal() -> str | None:
    """Why a decode step must be computed operation by operation, or None if one call may do it (`step`).

    Forcing anything but `"cpu"` is such a reason, so that a forced implementation is what runs.
    """
    if _forced.get() not in (None, "cpu"):
        return "forced"
    return None if native().library is not None else f"C++ kernels {native().reason}"


def _implementation(op: str, *args: Any) -> Callable[..., Any]:
    table, forced = _IMPLEMENTATIONS[op], _forced.get()
    chosen = forced not in table or forced == "cpu"  # by what the kernels can take; any other name is simply called
    refusal = _UNSUPPORTED[op](*args) if chosen and op in _UNSUPPORTED else None
    if forced in table:
        if refusal is not None:
            raise ValueError(f"{op} is forced to the C++ kernels, which cannot take this call: {refusal}")
        return table[forced]
    return next(function for name, function in table.items() if name != "cpu" or refusal is None)


def select_topk(q: Tensor, weights: Tensor, keys: Tensor, positions: Tensor, topk: int) -> Tensor:
    """Exact causal top-k of the lightning indexer, int64 `[Q, topk]`. Contract: `ops/indexer/reference.py`."""
    return _implementation("select_topk", q, weights, keys, positions, topk)(q, weights, keys, positions, topk)


def sparse_mla(q: Tensor, pool: Tensor, slots: Tensor, scale: float, value_dim: int) -> Tensor:
    """Latent attention over chosen rows, `[Q, A, C]`. Contract: `ops/sparse_mla/reference.py`."""
    return _implementation("sparse_mla", q, pool, slots, scale, value_dim)(q, pool, slots, scale, value_dim)


def route(
    scores: Tensor, bias: Tensor, *, topk: int, groups: int, topk_groups: int, normalise: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Expert ids and weights `[N, k]`. Contract: `ops/experts/reference.py`."""
    return _implementation("route", scores, bias)(
        scores, bias, topk=topk, groups=groups, topk_groups=topk_groups, normalise=normalise, scale=scale
    )


def experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Weighted sum of the chosen experts `[N, H]`. Contract: `ops/experts/reference.py`."""
    return _implementation("experts", x)(x, ids, weights, gate_up, down)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """Rows of unit mean square, times weight. Contract: `ops/elementwise.py`, as for those below."""
    return _implementation("rms_norm", x, weight)(x, weight, eps, out)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleave: bool, out: Tensor | None = None) -> Tensor:
    """Rotate the pairs of `x` `[N, H, D]` by the angles of its row."""
    return _implementation("apply_rope", x)(x, cos, sin, interleave=interleave, out=out)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`."""
    return _implementation("swiglu", gate, up)(gate, up)


def wide_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` in float32, `[N, E]`, whatever the dtype of both."""
    return _implementation("wide_linear", x, weight)(x, weight)
