"""Latent attention: sparse against its loop, absorbed against expanded, dense against sparse over everything."""

import pytest
import torch

from indexshare import ops
from indexshare.ops.sparse_mla import reference, torch_impl
from tests.tolerance import TOL


def _case(queries: int, pool: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    q, rows = torch.randn(queries, 3, 20, dtype=dtype), torch.randn(pool, 20, dtype=dtype)
    slots = torch.stack([torch.randperm(pool)[:k] for _ in range(queries)])
    return q, rows, slots


@pytest.mark.usefixtures("poisoned_memory", "implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("queries", "pool", "k"), [(1, 1, 1), (1, 500, 63), (63, 100, 16), (5, 2000, 300)])
def test_sparse_equals_the_loop(queries: int, pool: int, k: int, dtype: torch.dtype) -> None:
    q, rows, slots = _case(queries, pool, k, dtype)
    expected, _ = reference.sparse_mla_with_lse(q, rows, slots, 0.25, 16)
    actual = ops.sparse_mla(q, rows, slots, 0.25, 16)
    torch.testing.assert_close(actual, expected, **TOL["sparse mla", str(dtype)[6:]].bounds)


@pytest.mark.usefixtures("implementation")
def test_absent_slots_and_empty_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_impl, "CHUNK_BYTES", 1)  # every query is its own chunk
    q, rows, slots = _case(4, 30, 6)
    slots[0, 3:], slots[2] = -1, -1
    rows_poisoned = rows.clone()
    unused = set(range(30)) - set(slots.flatten().tolist()) - {0}
    rows_poisoned[sorted(unused)] = torch.nan
    expected, lse = reference.sparse_mla_with_lse(q, rows, slots, 0.25, 16)
    actual = ops.sparse_mla(q, rows_poisoned, slots, 0.25, 16)
    torch.testing.assert_close(actual, expected, **TOL["sparse mla", "float32"].bounds)
    assert not actual[2].any() and torch.isinf(lse[2]).all()
    assert ops.sparse_mla(q[:0], rows, slots[:0], 0.25, 16).shape == (0, 3, 16)


def test_gradient_gathers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_impl, "CHUNK_BYTES", 1)
    q, rows, slots = _case(4, 9, 3, torch.float64)
    slots[1, 1:] = -1
    leaves = (q.requires_grad_(), rows.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: ops.sparse_mla(a, b, slots, 0.3, 16), leaves)


@pytest.mark.usefixtures("poisoned_memory", "implementation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("queries", "heads", "width", "value", "pool", "k"),
    [(1, 1, 4, 2, 1, 1), (5, 3, 20, 16, 40, 33), (3, 4, 96, 64, 700, 256), (2, 9, 50, 34, 90, 70)],
)
def test_gradient_is_that_of_the_formula(
    queries: int, heads: int, width: int, value: int, pool: int, k: int, dtype: torch.dtype
) -> None:
    q, rows, grad = (
        torch.randn(*s).to(dtype) for s in ((queries, heads, width), (pool, width), (queries, heads, value))
    )
    slots = torch.randint(pool, (queries, k))  # rows may occur twice
    slots[:, k // 2 :][torch.rand(queries, k - k // 2) < 0.3] = -1
    if queries > 2:
        slots[1] = -1
    exact = [t.double().requires_grad_() for t in (q, rows)]
    with ops.force("torch"):
        ops.sparse_mla(exact[0], exact[1], slots, 0.3, value).backward(grad.double())
    leaves = [t.clone().requires_grad_() for t in (q, rows)]
    ops.sparse_mla(leaves[0], leaves[1], slots, 0.3, value).backward(grad)
    bounds = TOL["sparse mla gradient", str(dtype)[6:]]
    for leaf, wanted in zip(leaves, exact, strict=True):
        assert leaf.grad is not None and wanted.grad is not None and leaf.grad.dtype == dtype
        assert (leaf.grad.double() - wanted.grad).norm() <= bounds.rtol * wanted.grad.norm() + bounds.atol


def test_absorbed_equals_expanded() -> None:
    nope, rope, value, rank, heads = 6, 4, 5, 16, 3
    q, latents = torch.randn(7, heads, nope + rope), torch.randn(40, rank + rope)
    kv_b = torch.randn(heads, nope + value, rank)
    slots = torch.stack([torch.randperm(40)[:9] for _ in range(7)])
    expected = reference.expanded_mla(q, latents, kv_b, slots, 0.3, nope)
    absorbed = torch.cat((torch.einsum("qae,aec->qac", q[..., :nope], kv_b[:, :nope]), q[..., nope:]), -1)
    mixed, _ = reference.sparse_mla_with_lse(absorbed, latents, slots, 0.3, rank)
    actual = torch.einsum("qac,avc->qav", mixed, kv_b[:, nope:])
    torch.testing.assert_close(actual, expected, **TOL["sparse mla", "float32"].bounds)


@pytest.mark.parametrize("value", [8, 12, 16])
@pytest.mark.parametrize(("queries", "first"), [(1, 0), (17, 0), (1, 40), (17, 23)])
def test_dense_is_sparse_over_everything(queries: int, first: int, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_impl, "CHUNK_BYTES", 5 * 40)
    keys = first + queries
    q, k, v = torch.randn(queries, 2, 12), torch.randn(keys, 2, 12), torch.randn(keys, 2, value)
    actual = ops.dense_attention(q, k, v, first, 0.3)
    for row in range(queries):
        seen = first + row + 1
        weights = (torch.einsum("ax,tax->at", q[row], k[:seen]) * 0.3).softmax(-1)
        expected = torch.einsum("at,tav->av", weights, v[:seen])
        torch.testing.assert_close(actual[row], expected, **TOL["sparse mla", "float32"].bounds)
