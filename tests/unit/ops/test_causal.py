"""Full attention of whole sequences in training: against a dense masked softmax, values and gradients."""

import pytest
import torch
from torch import Tensor

from indexshare import ops
from indexshare.ops.dense_attention import causal
from tests.tolerance import TOL

HEADS, WIDTH, VALUE, SCALE = 3, 10, 6, 0.4


def dense_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In float64, with the whole matrix of scores and an explicit mask."""
    q, k, v = q.double(), k.double(), v.double()
    future = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)
    scores = torch.einsum("bqax,bkax->baqk", q, k) * SCALE
    return torch.einsum("baqk,bkav->bqav", scores.masked_fill(future, -torch.inf).softmax(-1), v)


def _case(batch: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    widths = (WIDTH, WIDTH, VALUE)
    q, k, v = (torch.randn(batch, length, HEADS, width).to(dtype).requires_grad_() for width in widths)
    return q, k, v


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 63, 127, 128, 129, 257, 300])
@pytest.mark.parametrize("keep", [True, False])
def test_values_and_gradients_equal_the_dense_reference(
    length: int, dtype: torch.dtype, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token, and lengths around the block of 128 queries; probabilities kept, and computed again."""
    monkeypatch.setattr(causal, "KEEP_BYTES", 1 << 30 if keep else 0)
    leaves = _case(2, length, dtype)
    actual = ops.causal_attention(*leaves, SCALE)
    assert actual.shape == (2, length, HEADS, VALUE) and actual.dtype == dtype
    upstream = torch.randn(actual.shape).to(dtype)
    grads = torch.autograd.grad(actual, leaves, upstream)
    expected = dense_reference(*leaves)
    wanted = torch.autograd.grad(expected, leaves, upstream.double())
    _compare(actual, expected, "causal attention")
    for got, want in zip(grads, wanted, strict=True):
        assert got.dtype == dtype
        _compare(got, want.double(), "causal attention gradient")


def _compare(actual: Tensor, expected: Tensor, operation: str) -> None:
    """Element by element in float32; bfloat16 by the norm of the difference, for single elements cancel at will."""
    bound = TOL[operation, str(actual.dtype)[6:]]
    if actual.dtype == torch.bfloat16 and actual.shape[1] > 1:  # one token alone has no gradient in its query
        assert (actual.double() - expected).norm() <= bound.rtol * expected.norm()
    elif actual.dtype == torch.float32:
        torch.testing.assert_close(actual.double(), expected, **bound.bounds)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("keep", [True, False])
def test_gradients_by_finite_differences(length: int, keep: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of four queries."""
    monkeypatch.setattr(causal, "BLOCK", 4)
    monkeypatch.setattr(causal, "KEEP_BYTES", 1 << 30 if keep else 0)
    leaves = _case(1, length, torch.float64)
    assert torch.autograd.gradcheck(lambda q, k, v: ops.causal_attention(q, k, v, SCALE), leaves)


def test_sequences_do_not_see_each_other() -> None:
    q, k, v = _case(3, 140, torch.float32)
    together = ops.causal_attention(q, k, v, SCALE)
    for i in range(3):
        alone = ops.causal_attention(q[i : i + 1], k[i : i + 1], v[i : i + 1], SCALE)
        torch.testing.assert_close(together[i : i + 1], alone, **TOL["causal attention", "float32"].bounds)


def test_later_keys_do_not_matter() -> None:
    q, k, v = _case(1, 130, torch.float32)
    before = ops.causal_attention(q, k, v, SCALE)
    with torch.no_grad():
        k[:, 129], v[:, 129] = 100.0, torch.nan
    after = ops.causal_attention(q, k, v, SCALE)
    assert torch.equal(after[:, :128], before[:, :128])  # rows of earlier blocks never meet the new key
    torch.testing.assert_close(before[:, 0], v[:, 0], **TOL["causal attention", "float32"].bounds)
