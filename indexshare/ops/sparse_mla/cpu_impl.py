"""Sparse latent attention in C++ (`cpu_impl.cpp`): reads the chosen rows of the pool in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from indexshare.ops.coded.rows import CodedRows, Rows, kernel_operand
from indexshare.ops.native import native

_GRADIENT_PARTS = 4  # more would allow more threads, at a pool's size of memory each


def unsupported(q: Tensor, pool: Rows, slots: Tensor, scale: float, value_dim: int) -> str | None:
    """Why the kernel cannot take these arguments, or None. Contract: see the reference."""
    if native().library is None:
        return native().reason
    if not (q.is_cpu and pool.is_cpu and slots.is_cpu):
        return "not on the CPU"
    if q.dtype not in (torch.bfloat16, torch.float32) or pool.dtype != q.dtype:
        return f"dtypes {q.dtype}, {pool.dtype}"
    if q.dtype == torch.bfloat16 and (q.shape[-1] % 2 or value_dim % 2):
        return "odd width in bfloat16"
    if isinstance(pool, CodedRows) and q.requires_grad and torch.is_grad_enabled():
        return f"gradients over rows in {pool.layout.kind}"
    return None


def sparse_mla(q: Tensor, pool: Rows, slots: Tensor, scale: float, value_dim: int) -> Tensor:
    """Attention over chosen latents, `[Q, A, C]`, differentiable in q and pool.

    Contract: see the reference; `unsupported` must be None.
    """
    if torch.is_grad_enabled() and (q.requires_grad or pool.requires_grad):
        return _SparseMLA.apply(q, pool, slots, scale, value_dim)
    return sparse_mla_with_lse(q, pool, slots, scale, value_dim)[0]


class _SparseMLA(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, pool: Tensor, slots: Tensor, scale: float, value_dim: int) -> Tensor:  # type: ignore[override]
        out = sparse_mla_with_lse(q, pool, slots, scale, value_dim)[0]
        ctx.save_for_backward(q, pool, slots, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, pool, slots, out = ctx.saved_tensors
        d_q, d_pool = sparse_mla_backward(q, pool, slots, out, grad, ctx.scale)
        return d_q, d_pool, None, None, None


def sparse_mla_backward(
    q: Tensor, pool: Tensor, slots: Tensor, out: Tensor, grad: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of q and pool, in their dtypes, from the output `[Q, A, C]` and its gradient.

    The same for any number of threads: queries are divided into `_GRADIENT_PARTS`, whose sums are added in order.
    """
    (queries, heads), values = q.shape[:2], out.shape[2]
    d_q = torch.empty(q.shape, dtype=q.dtype)
    d_pool = torch.zeros(_GRADIENT_PARTS, *pool.shape)
    if queries and heads:
        q, pool, slots, out, grad = _laid_out(q, pool, slots, out, grad.to(q.dtype))
        library = native().library
        assert library is not None
        failed = library.indexshare_sparse_mla_backward(
            *_operands(q, pool), *_sizes(q, pool, slots, values, scale), grad.data_ptr(), out.data_ptr(),
            d_q.data_ptr(), d_pool.data_ptr(), _GRADIENT_PARTS, torch.get_num_threads(),
        )  # fmt: skip
        _check(failed, heads, pool, slots)
    return d_q, d_pool.sum(0).to(pool.dtype)


def sparse_mla_with_lse(
    q: Tensor, pool: Rows, slots: Tensor, scale: float, value_dim: int, *, want_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The same, with the log-sum-exp `[Q, A]` in float32 if it is wanted.

    Raises:
        ValueError: shapes do not fit.
        IndexError: a slot is not a row of the pool.
        MemoryError: no memory for one query's logits.
    """
    queries, heads, width = q.shape
    if pool.shape[1:] != (width,) or slots.ndim != 2 or slots.shape[0] != queries or not 0 < value_dim <= width:
        raise ValueError(
            f"q {list(q.shape)}, pool {list(pool.shape)}, slots {list(slots.shape)}, value_dim {value_dim}: expected "
            "[Q, A, R], [S, R], [Q, k] and at most R"
        )
    out = q.new_empty(queries, heads, value_dim)
    lse = torch.empty(queries, heads, dtype=torch.float32) if want_lse else None
    if queries == 0 or heads == 0:
        return out, lse
    q, slots, (stored, kind, precise) = q.contiguous(), slots.contiguous(), kernel_operand(pool)
    library = native().library
    assert library is not None
    failed = library.indexshare_sparse_mla(
        *_operands(q, stored), kind, precise, *_sizes(q, stored, slots, value_dim, scale), out.data_ptr(),
        None if lse is None else lse.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    _check(failed, heads, stored, slots)
    return out, lse


def _laid_out(q: Tensor, pool: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Contiguous, but for the pool, whose rows may lie apart."""
    pool = pool if pool.stride(1) == 1 else pool.contiguous()
    return q.contiguous(), pool, *(t.contiguous() for t in others)


def _operands(q: Tensor, pool: Tensor) -> tuple[Any, ...]:
    """What both kernels take first: dtype, queries, rows."""
    return q.dtype == torch.bfloat16, q.data_ptr(), pool.data_ptr(), pool.stride(0) * pool.element_size()


def _sizes(q: Tensor, pool: Tensor, slots: Tensor, values: int, scale: float) -> tuple[Any, ...]:
    """What both kernels take next: slots, sizes, scale."""
    return (slots.data_ptr(), *q.shape, values, slots.shape[1], pool.shape[0], scale)


def _check(failed: int, heads: int, pool: Tensor, slots: Tensor) -> None:
    if failed == 2:
        raise IndexError(f"a slot is not a row of the pool, which has {pool.shape[0]}")
    if failed:
        raise MemoryError(f"no memory for the logits of {heads} heads over {slots.shape[1]} rows")
