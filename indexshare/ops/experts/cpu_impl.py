"""Routing, sorting by expert and activation in C++ (`cpu_impl.cpp`) around the same products as in plain torch."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from indexshare.ops.experts import torch_impl
from indexshare.ops.native import native
from indexshare.ops.rows import cpu_impl as rows_cpu


def route_unsupported(scores: Tensor, bias: Tensor) -> str | None:
    """Why the kernel cannot take these arguments of `route`, or None."""
    if scores.dtype != torch.float32:
        return f"dtype {scores.dtype}"
    return rows_cpu.unsupported(scores, bias)


def route(
    scores: Tensor, bias: Tensor, *, topk: int, groups: int, topk_groups: int, normalise: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Expert ids `[N, k]` ascending and weights `[N, k]`. Contract: see the reference.

    Raises:
        ValueError: fewer experts than `topk` are in the groups that stay eligible.
        MemoryError: no memory for one token's scores.
    """
    tokens, experts = scores.shape
    eligible = experts if groups == 1 else experts // groups * topk_groups
    if not 0 < topk <= eligible:
        raise ValueError(f"topk is {topk}, {eligible} experts are eligible")
    ids = torch.empty(tokens, topk, dtype=torch.int64)
    weights = torch.empty(tokens, topk, dtype=torch.float32)
    scores, bias = scores.contiguous(), bias.contiguous()
    library = native().library
    assert library is not None
    failed = library.indexshare_route(
        _pointer(scores), _pointer(bias), *map(ctypes.c_int64, (tokens, experts, topk, groups, topk_groups)),
        ctypes.c_int(normalise), ctypes.c_float(scale), _pointer(ids), _pointer(weights),
        ctypes.c_int(torch.get_num_threads()),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory to route tokens to {experts} experts")
    return ids, weights


def experts_unsupported(x: Tensor, ids: Tensor) -> str | None:
    """Why the kernels cannot take these arguments of `experts`, or None. Gradients are no reason: see there."""
    with torch.no_grad():
        return rows_cpu.unsupported(x)


def experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Weighted sum of the chosen experts, `[N, H]`, differentiable. Contract: see the reference."""
    return torch_impl.experts(x, ids, weights, gate_up, down, group=group, activation=rows_cpu.swiglu)


def group(ids: Tensor, num_experts: int, grain: int) -> tuple[list[int], Tensor, Tensor]:
    """See `torch_impl.group`."""
    tokens, chosen = ids.shape
    pairs = tokens * chosen
    ids = ids.contiguous()
    stops = torch.empty(num_experts, dtype=torch.int64)
    tokens_at = torch.empty(pairs + num_experts * (grain - 1), dtype=torch.int64)
    place = torch.empty(pairs, dtype=torch.int64)
    library = native().library
    assert library is not None
    library.indexshare_group(
        _pointer(ids), *map(ctypes.c_int64, (pairs, chosen, num_experts, grain)), _pointer(stops), _pointer(tokens_at),
        _pointer(place),
    )  # fmt: skip
    ends = stops.tolist()
    return ends, tokens_at[: ends[-1]], place


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
