"""Routing, sorting by expert and the experts' products in C++ (`cpu_impl.cpp`).

Where gradients are wanted, or where torch's library multiplies bfloat16 faster, the products are torch's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from indexshare.ops.experts.grouped import grouped_experts
from indexshare.ops.native import native, processor_features
from indexshare.ops.rows.launch import swiglu, unsupported


def route_unsupported(scores: Tensor, bias: Tensor, **_: object) -> str | None:
    """Why the kernel cannot take these arguments of `route`, or None."""
    if scores.dtype != torch.float32:
        return f"dtype {scores.dtype}"
    return unsupported(scores, bias)


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
        scores.data_ptr(), bias.data_ptr(), tokens, experts, topk, groups, topk_groups, normalise, scale,
        ids.data_ptr(), weights.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory to route tokens to {experts} experts")
    return ids, weights


def experts_unsupported(x: Tensor, *_: Tensor) -> str | None:
    """Why the kernels cannot take these arguments of `experts`, or None. Gradients are no reason: see there."""
    return unsupported(x, differentiable=True)


def experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Weighted sum of the chosen experts, `[N, H]`, differentiable. Contract: see the reference."""
    tensors = (x, weights, gate_up, down)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if wanted or not ids.numel() or _library_is_faster(x.dtype) or not _fits(x, gate_up, down):
        return grouped_experts(x, ids, weights, gate_up, down, group=group, activation=swiglu)
    return products(x, ids, weights, gate_up, down)


def _library_is_faster(dtype: torch.dtype) -> bool:
    """Whether torch's matrix products beat ours: theirs use AMX, ours at best the bfloat16 products of AVX-512."""
    return dtype != torch.bfloat16 or native().level != "avx512bf16" or "amx_bf16" in processor_features()


def _fits(x: Tensor, gate_up: Tensor, down: Tensor) -> bool:
    same = gate_up.dtype == down.dtype == x.dtype and gate_up.is_contiguous() and down.is_contiguous()
    return same and x.shape[1] % 2 == down.shape[2] % 2 == 0


def products(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`experts` without gradients by our own products; the widths H and I must be even in bfloat16.

    The result does not depend on the other tokens of the batch, nor on the number of threads.

    Raises:
        MemoryError: no memory for sums.
    """
    tokens, hidden = x.shape
    count, inner = down.shape[0], down.shape[2]
    stops, tokens_at, place = group(ids, count, 1)
    rounded = weights.to(x.dtype).float().flatten()
    at_place = torch.empty_like(rounded).index_copy_(0, place, rounded)
    x = x if x.stride(1) == 1 else x.contiguous()
    scratch, out = x.new_empty(len(place), inner), x.new_empty(tokens, hidden)
    ends = torch.tensor(stops)
    library = native().library
    assert library is not None
    failed = library.indexshare_experts(
        x.dtype == torch.bfloat16, x.data_ptr(), x.stride(0) * x.element_size(), gate_up.data_ptr(), down.data_ptr(),
        tokens, hidden, inner, count, len(place), ends.data_ptr(), tokens_at.data_ptr(), at_place.data_ptr(),
        scratch.data_ptr(), out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory for the sums of {tokens} tokens")
    return out


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
        ids.data_ptr(), pairs, chosen, num_experts, grain, stops.data_ptr(), tokens_at.data_ptr(), place.data_ptr(),
    )  # fmt: skip
    ends = stops.tolist()
    return ends, tokens_at[: ends[-1]], place
