"""Muon: near-orthogonal updates, Muon Split, expert stacks, and the update size that AdamW's rates are made for."""

import pytest
import torch

from indexshare.train.muon import Muon, orthogonalize, split_rows
from tests.tolerance import TOL


def _with_condition(rows: int, columns: int, condition: float) -> torch.Tensor:
    """A random matrix whose singular values fall from 1e-4 to 1e-4 / condition."""
    rank = min(rows, columns)
    u = torch.linalg.qr(torch.randn(rows, rows)).Q[:, :rank]
    v = torch.linalg.qr(torch.randn(columns, columns)).Q[:, :rank]
    return 1e-4 * (u * torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), rank)) @ v.T


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (32, 128), (128, 32), (100, 63), (1, 16)])
@pytest.mark.parametrize("condition", [1.0, 5.0, 100.0])
def test_singular_values_become_about_one(rows: int, columns: int, condition: float, dtype: torch.dtype) -> None:
    matrix = _with_condition(rows, columns, condition)
    result = orthogonalize(matrix, dtype=dtype)
    assert result.dtype == torch.float32
    values = torch.linalg.svdvals(result)
    torch.testing.assert_close(
        values, torch.ones_like(values), **TOL["orthogonal singular values", str(dtype)[6:]].bounds
    )
    # The directions are those of the matrix: its polar factor and the result agree along every singular pair.
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert (u.T @ result @ v.T).diagonal().min() > 0


def test_matrices_of_a_stack_do_not_touch_each_other() -> None:
    stack = torch.randn(2, 3, 12, 20)
    together = orthogonalize(stack, dtype=torch.float32)
    for i in range(2):
        for j in range(3):
            alone = orthogonalize(stack[i, j] * 10.0 ** (i - j), dtype=torch.float32)
            torch.testing.assert_close(together[i, j], alone, **TOL["orthogonal stack", "float32"].bounds)
    assert not orthogonalize(torch.zeros(4, 5)).any()


def _parameter(*shape: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(*shape))


def _step(parameter: torch.nn.Parameter, grads: list[torch.Tensor], **settings: object) -> torch.Tensor:
    """The parameter after steps with these gradients."""
    group = {"params": [parameter], "split": settings.pop("split", None)}
    optimizer = Muon([group], lr=0.02, ns_dtype=torch.float32, **settings)  # type: ignore[arg-type]
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize(("sizes", "heads"), [((6,), 4), ((4, 6), 3), ((5, 9), 1)])
def test_split_updates_equal_heads_updated_alone(sizes: tuple[int, ...], heads: int) -> None:
    """Muon Split: per head its key rows and its value rows, as if each were a parameter of its own."""
    whole = _parameter(heads * sum(sizes), 20)
    grads = [torch.randn(heads, sum(sizes), 20) * torch.logspace(-3, 3, heads)[:, None, None] for _ in range(3)]
    parts = whole.detach().clone().view(heads, sum(sizes), 20)
    result = _step(whole, [g.flatten(0, 1) for g in grads], split=split_rows(sizes, heads), weight_decay=0.1)
    for head in range(heads):
        for start, size in zip((0, sizes[0]), sizes, strict=False):
            rows = slice(start, start + size)
            alone = torch.nn.Parameter(parts[head, rows].clone())
            expected = _step(alone, [g[head, rows] for g in grads], weight_decay=0.1)
            actual = result.view(heads, sum(sizes), 20)[head, rows]
            torch.testing.assert_close(actual, expected, **TOL["orthogonal stack", "float32"].bounds)


def test_expert_stacks_equal_experts_updated_alone() -> None:
    stack, grads = _parameter(3, 10, 8), [torch.randn(3, 10, 8) for _ in range(2)]
    start = stack.detach().clone()
    halves = _step(_clone(start), grads, split=lambda matrix: list(matrix.chunk(2, dim=-2)))
    result = _step(stack, grads)
    for expert in range(3):
        alone = _step(_clone(start[expert]), [g[expert] for g in grads])
        torch.testing.assert_close(result[expert], alone, **TOL["orthogonal stack", "float32"].bounds)
        for half in (slice(0, 5), slice(5, 10)):
            alone = _step(_clone(start[expert, half]), [g[expert, half] for g in grads])
            torch.testing.assert_close(halves[expert, half], alone, **TOL["orthogonal stack", "float32"].bounds)


def _clone(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor.clone())


def test_split_is_a_view_and_knows_its_rows() -> None:
    matrix = torch.zeros(2, 12, 3)
    for part in split_rows((2, 4), heads=2)(matrix):
        part += 1
    assert (matrix == 1).all()
    with pytest.raises(AssertionError, match="12 rows do not hold 5 heads"):
        split_rows((3,), heads=5)(matrix)


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (32, 128), (160, 32)])
def test_updates_have_the_size_of_adamw_updates(rows: int, columns: int) -> None:
    """Root mean square 0.2 times the rate, at any shape and any size of the gradient."""
    parameter = _parameter(rows, columns)
    before = parameter.detach().clone()
    _step(parameter, [torch.randn(rows, columns) * 1e-5])
    size = (parameter.detach() - before).square().mean().sqrt() / 0.02
    torch.testing.assert_close(size, torch.tensor(0.2), **TOL["muon update size", "float32"].bounds)


def test_weight_decay_is_decoupled() -> None:
    parameter = _parameter(8, 8)
    before = parameter.detach().clone()
    after = _step(parameter, [torch.zeros(8, 8)], weight_decay=0.5)
    torch.testing.assert_close(after, before * (1 - 0.02 * 0.5))


@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
def test_several_steps_agree_with_the_optimizer_of_torch(shape: tuple[int, int]) -> None:
    ours, theirs = _parameter(*shape), None
    start = ours.detach().clone()
    theirs = _clone(start)
    mine = Muon([ours], lr=0.02, weight_decay=0.1)
    public = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        grad = torch.randn(*shape)
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        mine.step()
        public.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() / moved < TOL["muon against torch", "bfloat16"].rtol


def test_parameters_without_gradient_stay_and_vectors_are_refused() -> None:
    used, unused = _parameter(4, 4), _parameter(4, 4)
    before = unused.detach().clone()
    optimizer = Muon([used, unused], lr=0.1, weight_decay=0.1)
    used.grad = torch.randn(4, 4)
    optimizer.step()
    assert torch.equal(unused, before)
    with pytest.raises(ValueError, match=r"shape \(4,\); use AdamW"):
        Muon([torch.nn.Parameter(torch.zeros(4))], lr=0.1)
