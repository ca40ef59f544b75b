"""Routing and expert sums against one token at a time."""

import pytest
import torch

from indexshare import ops
from indexshare.ops.experts import grouped, reference, torch_impl
from tests.tolerance import TOL


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (4, 2), (4, 4), (2, 1)])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.usefixtures("implementation")
def test_routing_equals_the_loop_with_ties(groups: int, kept: int, normalise: bool) -> None:
    scores = torch.randint(0, 4, (50, 16)).float() / 4
    bias = torch.randint(-2, 3, (16,)).float() / 4
    settings = {"topk": 3, "groups": groups, "topk_groups": kept, "normalise": normalise, "scale": 2.5}
    ids, weights = ops.route(scores, bias, **settings)
    wanted_ids, wanted_weights = reference.route(scores, bias, **settings)
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(weights, wanted_weights)


def _case(tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    ids = (
        torch.stack([torch.randperm(5)[:2].sort().values for _ in range(tokens)])
        if tokens
        else torch.empty(0, 2).long()
    )
    parts = (torch.randn(tokens, 12), torch.rand(tokens, 2), torch.randn(5, 14, 12), torch.randn(5, 12, 7))
    x, weights, gate_up, down = (t.to(dtype) for t in parts)
    return x, ids, weights, gate_up, down


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [0, 1, 2, 63])
@pytest.mark.usefixtures("implementation")
def test_grouped_products_equal_the_loop(tokens: int, dtype: torch.dtype) -> None:
    x, ids, weights, gate_up, down = _case(tokens, dtype)
    expected = reference.experts(x, ids, weights, gate_up, down)
    bounds = TOL["experts", str(dtype)[6:]].bounds
    torch.testing.assert_close(ops.experts(x, ids, weights, gate_up, down), expected, **bounds)
    with torch.enable_grad():
        actual = ops.experts(x.requires_grad_(), ids, weights, gate_up, down)
    torch.testing.assert_close(actual, expected, **bounds)


def test_expert_gradients() -> None:
    x, ids, weights, gate_up, down = _case(6, torch.float64)
    leaves = tuple(t.requires_grad_() for t in (x, weights, gate_up, down))
    assert torch.autograd.gradcheck(lambda a, b, c, d: ops.experts(a, ids, b, c, d), leaves)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_padded_stretches_change_nothing(dtype: torch.dtype) -> None:
    """Enough tokens for padding, one expert without any and one with most; values and every gradient."""
    tokens = 200
    x, _, weights, gate_up, down = _case(tokens, dtype)
    likes = torch.tensor([1.5, 0.3, -9.0, 0.2, 0.0])
    ids = (likes + torch.rand(tokens, 5)).topk(2).indices.sort().values
    plan = grouped._Grouping(ids, 5, torch_impl.group)
    grain = grouped._grain(2 * tokens, 5)
    lengths = {e: part.stop - part.start for e, part in plan.groups}
    assert grain == 4 and lengths.keys() == {0, 1, 3, 4}
    assert lengths == {e: -(-int((ids == e).sum()) // grain) * grain for e in lengths}
    assert torch.equal(plan.tokens[plan.inverse].view(-1, 2), torch.arange(tokens)[:, None].expand(-1, 2))

    leaves = tuple(t.requires_grad_() for t in (x, weights, gate_up, down))
    expected = reference.experts(x, ids, weights, gate_up, down)
    upstream = torch.randn(expected.shape).to(dtype)
    wanted = torch.autograd.grad(expected, leaves, upstream)
    actual = ops.experts(x, ids, weights, gate_up, down)
    grads = torch.autograd.grad(actual, leaves, upstream)
    with torch.no_grad():
        torch.testing.assert_close(ops.experts(x, ids, weights, gate_up, down), actual, rtol=0, atol=0)
    for got, want in zip((actual, *grads), (expected, *wanted), strict=True):
        assert (got - want).norm() <= TOL["experts gradient", str(dtype)[6:]].rtol * want.norm()
    assert not grads[2][2].any() and not grads[3][2].any()


def test_the_grain_of_padding_is_small() -> None:
    assert [grouped._grain(pairs, 8) for pairs in (1, 127, 255, 256, 4096, 1 << 20)] == [1, 1, 1, 2, 32, 8192]


def test_a_tokens_bits_do_not_depend_on_how_many_others_there_are() -> None:
    """In float32 without gradients: every expert multiplies whole numbers of rows."""
    x, ids = torch.randn(150, 32), torch.stack([torch.randperm(6)[:2].sort().values for _ in range(150)])
    weights, gate_up, down = torch.rand(150, 2), torch.randn(6, 48, 32), torch.randn(6, 32, 24)
    with torch.inference_mode():
        whole = ops.experts(x, ids, weights, gate_up, down)
        for first, last in ((0, 1), (0, 2), (3, 8), (10, 23), (40, 150), (149, 150)):
            part = slice(first, last)
            assert torch.equal(ops.experts(x[part], ids[part], weights[part], gate_up, down), whole[part])
