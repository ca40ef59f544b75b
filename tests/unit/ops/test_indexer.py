"""Selection: exact, ties to the lower position, equal to the reference; the indexer's loss and its gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexshare import ops
from indexshare.ops.indexer import reference, torch_impl
from tests.tolerance import TOL
from tests.unit.ops.conftest import fast_implementations


def _inputs(queries: int, keys: int, heads: int, dim: int, *, integers: bool = False) -> tuple[torch.Tensor, ...]:
    if integers:  # small integers: exact in float32, and full of ties
        parts = [torch.randint(-2, 3, s).float() for s in ((queries, heads, dim), (queries, heads), (keys, dim))]
    else:
        parts = [torch.randn(s) for s in ((queries, heads, dim), (queries, heads), (keys, dim))]
    positions = torch.arange(keys - queries, keys)
    return (*parts, positions)


@settings(deadline=None, max_examples=60)
@given(
    queries=st.integers(1, 9), extra=st.integers(0, 60), heads=st.integers(1, 5), topk=st.integers(1, 40),
    seed=st.integers(0, 10**6), rows=st.integers(1, 4),
)  # fmt: skip
def test_exact_selection_with_ties(queries: int, extra: int, heads: int, topk: int, seed: int, rows: int) -> None:
    torch.manual_seed(seed)
    q, w, k, positions = _inputs(queries, queries + extra, heads, 4, integers=True)
    expected = reference.select_topk(q, w, k, positions, topk)
    kept, torch_impl.CHUNK_BYTES = torch_impl.CHUNK_BYTES, rows * 8 * k.shape[0]
    try:
        for name in fast_implementations():
            with ops.force(name):
                assert torch.equal(ops.select_topk(q, w, k, positions, topk), expected), name
    finally:
        torch_impl.CHUNK_BYTES = kept


@pytest.mark.usefixtures("implementation")
@pytest.mark.parametrize(("queries", "keys", "topk"), [(1, 1, 1), (1, 700, 64), (63, 100, 16), (300, 2000, 256)])
def test_selected_score_mass_equals_the_reference(queries: int, keys: int, topk: int) -> None:
    q, w, k, positions = _inputs(queries, keys, 8, 32)
    chosen, expected = (
        ops.select_topk(q, w, k, positions, topk),
        reference.select_topk(q, w, k, positions, topk),
    )
    scores = reference.index_scores(q, w, k)
    mass = [scores.gather(1, c.clamp_min(0)).masked_fill(c < 0, 0).sum(1) for c in (chosen, expected)]
    torch.testing.assert_close(*mass, **TOL["selected score mass", "float32"].bounds)
    real = chosen >= 0
    assert torch.equal(real.sum(1), torch.minimum(positions + 1, torch.tensor(topk)))
    assert (chosen <= positions[:, None]).all()
    assert (chosen.diff(dim=1)[real[:, 1:]] > 0).all()


@pytest.mark.usefixtures("implementation")
def test_a_plateau_of_zeros_goes_to_the_lowest_positions() -> None:
    _, w, k, _ = _inputs(1, 50, 2, 4)
    chosen = ops.select_topk(-k[:1].abs()[:, None].expand(1, 2, 4), w, k.abs(), torch.tensor([49]), 7)
    assert chosen.tolist() == [list(range(7))]


@pytest.mark.usefixtures("implementation")
def test_no_queries() -> None:
    assert ops.select_topk(
        torch.empty(0, 2, 4), torch.empty(0, 2), torch.randn(5, 4), torch.empty(0).long(), 3
    ).shape == (0, 3)


def _kl_case(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    shapes = ((9, 3, 5), (9, 3), (9, 5), (9, 2, 6), (9, 6))
    return tuple(torch.randn(s, dtype=dtype) for s in shapes)


def test_kl_equals_its_formula_with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    q, w, k, queries, latents = _kl_case(torch.float64)
    slots = torch.tensor([[4, 5], [4, 6], [5, 7], [5, 8]])
    groups = [
        ops.KLRows(torch.arange(4)),
        ops.KLRows(torch.tensor([4]), first=4),
        ops.KLRows(torch.arange(5, 9), slots=slots),
    ]
    leaves = [t.requires_grad_() for t in (q, w, k)]
    expected = reference.indexer_kl(*leaves, queries, latents, groups, 0.5)
    wanted = torch.autograd.grad(expected, leaves)
    for budget in (1 << 25, 1):  # one chunk, and one row at a time
        monkeypatch.setattr("indexshare.ops.indexer.loss.CHUNK_BYTES", budget)
        loss = ops.indexer_kl(*leaves, queries, latents, groups, 0.5)
        torch.testing.assert_close(loss, expected)
        for got, want in zip(torch.autograd.grad(loss, leaves), wanted, strict=True):
            torch.testing.assert_close(got, want)


def test_kl_in_bfloat16_is_near_the_formula() -> None:
    """The loss, and each gradient by its relative norm, against the formula in float64 on the same values."""
    torch.manual_seed(0)
    shapes = ((300, 8, 64), (300, 8), (300, 64), (300, 4, 96), (300, 96))
    q, w, k, queries, latents = (torch.randn(s).to(torch.bfloat16) for s in shapes)
    slots = torch.stack([torch.randperm(r + 1)[:64] for r in range(200, 300, 3)])
    groups = [ops.KLRows(torch.arange(0, 200, 7)), ops.KLRows(torch.arange(200, 300, 3), slots=slots)]
    results = []
    for function, dtype in ((reference.indexer_kl, torch.float64), (ops.indexer_kl, torch.bfloat16)):
        leaves = [t.to(dtype).requires_grad_() for t in (q, w * 0.05, k)]
        loss = function(*leaves, queries.to(dtype), latents.to(dtype), groups, 0.1)
        results.append((loss.detach().double(), *(g.double() for g in torch.autograd.grad(loss, leaves))))
    for name, want, got in zip(("loss", "queries", "weights", "keys"), *results, strict=True):
        assert (got - want).norm() < TOL["indexer kl", "bfloat16"].rtol * want.norm(), name


def test_kl_is_zero_for_a_single_candidate_and_reaches_no_attention_input() -> None:
    q, w, k, queries, latents = (t.requires_grad_() for t in _kl_case(torch.float32))
    assert ops.indexer_kl(q, w, k, queries, latents, [ops.KLRows(torch.tensor([0]))], 1.0).abs() < 1e-6
    ops.indexer_kl(q, w, k, queries, latents, [ops.KLRows(torch.arange(9))], 1.0).backward()
    assert queries.grad is None and latents.grad is None and q.grad is not None and q.grad.abs().sum() > 0
