"""The fused indexer in C++ (`cpu_impl.cpp`): scores, threshold and top-k in one pass over the keys."""

from __future__ import annotations

import torch
from torch import Tensor

from indexshare.ops.coded.rows import Rows, kernel_operand
from indexshare.ops.native import native


def unsupported(q: Tensor, weights: Tensor, keys: Rows, positions: Tensor, topk: int) -> str | None:
    """Why the kernel cannot take these arguments, or None. Contract: see the reference."""
    if native().library is None:
        return native().reason
    if not (q.is_cpu and weights.is_cpu and keys.is_cpu and positions.is_cpu):
        return "not on the CPU"
    if q.dtype not in (torch.bfloat16, torch.float32) or keys.dtype != q.dtype or weights.dtype != torch.float32:
        return f"dtypes {q.dtype}, {weights.dtype}, {keys.dtype}"
    if q.dtype == torch.bfloat16 and q.shape[-1] % 2:
        return "odd width in bfloat16"
    if keys.shape[0] >= 2**31:
        return "more than 2^31 keys"
    return None


def select_topk(q: Tensor, weights: Tensor, keys: Rows, positions: Tensor, topk: int) -> Tensor:
    """Exact causal top-k, int64 `[Q, topk]`. Contract: see the reference; `unsupported` must be None.

    Raises:
        ValueError: shapes do not fit, or a position is not one of the keys.
        MemoryError: no memory for the candidates.
    """
    queries, heads, width = q.shape
    if weights.shape != (queries, heads) or keys.shape[1:] != (width,) or positions.shape != (queries,) or topk < 1:
        raise ValueError(
            f"q {list(q.shape)}, weights {list(weights.shape)}, keys {list(keys.shape)}, positions "
            f"{list(positions.shape)}, topk {topk}: expected [Q, H, D], [Q, H], [T, D], [Q] and at least 1"
        )
    out = torch.empty(queries, topk, dtype=torch.int64)
    if queries == 0:
        return out
    if int(positions.min()) < 0 or int(positions.max()) >= keys.shape[0]:
        raise ValueError(f"positions reach from {int(positions.min())} to {int(positions.max())}, keys to {len(keys)}")
    q, weights, positions = q.contiguous(), weights.contiguous(), positions.contiguous()
    stored, kind, precise = kernel_operand(keys)
    library = native().library
    assert library is not None
    failed = library.indexshare_select_topk(
        q.dtype == torch.bfloat16, q.data_ptr(), weights.data_ptr(), stored.data_ptr(),
        stored.stride(0) * stored.element_size(), kind, precise, positions.data_ptr(), queries, heads, width,
        keys.shape[0], topk, out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise MemoryError(f"no memory for the index candidates of {queries} queries, topk {topk}")
    return out
