"""Every operation's torch form against its reference, values and gradients, for those without a file of their own."""

import pytest
import torch
from torch import Tensor

from indexshare import ops
from tests.tolerance import TOL


def _leaves(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes)


def _cases() -> dict[str, tuple[tuple[Tensor, ...], tuple[object, ...], dict[str, object]]]:
    """Operation -> differentiable arguments, further ones, keywords."""
    torch.manual_seed(0)
    tables = ops.rope_tables([1.0, 0.1], torch.arange(5))
    targets = torch.tensor([1, -100, 6, 0])
    groups = [ops.KLRows(torch.arange(3)), ops.KLRows(torch.tensor([3, 4]), slots=torch.tensor([[1, 3], [0, 4]]))]
    constants = (torch.randn(5, 3, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64))
    return {
        "rms_norm": (_leaves((5, 7), (7,)), (1e-5,), {}),
        "layer_norm": (_leaves((5, 7), (7,), (7,)), (1e-5,), {}),
        "apply_rope": (_leaves((5, 2, 4)), tables, {"interleave": True}),
        "swiglu": (_leaves((5, 7), (5, 7)), (), {}),
        "wide_linear": (_leaves((5, 7), (3, 7)), (), {}),
        "dense_attention": (_leaves((3, 2, 6), (8, 1, 6), (8, 1, 4)), (5, 0.4), {}),
        "sparse_grouped": (_leaves((3, 4, 3), (9, 6), (9, 4)), (torch.tensor([[0, 3], [8, -1], [-1, -1]]), 0.4, 2), {}),
        "causal_attention": (_leaves((2, 5, 2, 6), (2, 5, 2, 6), (2, 5, 2, 4)), (0.4,), {}),
        "sparse_mla": (_leaves((3, 2, 6), (9, 6)), (torch.tensor([[0, 3], [8, -1], [-1, -1]]), 0.4, 4), {}),
        "indexer_kl": (_leaves((5, 2, 4), (5, 2), (5, 4)), (*constants, groups, 0.5), {}),
        "linear_cross_entropy": (_leaves((4, 6), (9, 6)), (targets, -100), {}),
        "linear_overlap": (_leaves((4, 6)), (constants[1][:4], torch.randn(9, 6, dtype=torch.float64)), {}),
    }


@pytest.mark.parametrize("name", sorted(_cases()))
def test_torch_and_reference_agree(name: str) -> None:
    leaves, others, keywords = _cases()[name]
    operation, results = getattr(ops, name), []
    for implementation in ("torch", "reference"):
        with ops.force(implementation):
            out = operation(*leaves, *others, **keywords)
            weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape) + 0.1
            results.append((out, *torch.autograd.grad((out * weights).sum(), leaves)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, **TOL["operation", "float64"].bounds)


@pytest.mark.parametrize(("first", "queries"), [(0, 8), (5, 3), (7, 1)])
def test_heads_that_share_keys(first: int, queries: int) -> None:
    """Six heads of queries over three of keys; the reference repeats each key head for the two that it serves."""
    leaves, results = _leaves((queries, 6, 5), (8, 3, 5), (8, 3, 5)), []
    q, k, v = leaves
    one_by_one = [
        ops.dense_attention(q[:, [head]], k[:, [head // 2]], v[:, [head // 2]], first, 0.4) for head in range(6)
    ]
    for implementation in ("torch", "reference"):
        with ops.force(implementation):
            out = ops.dense_attention(*leaves, first, 0.4)
        torch.testing.assert_close(out, torch.cat(one_by_one, dim=1), **TOL["operation", "float64"].bounds)
        results.append(torch.autograd.grad(out.square().sum(), leaves))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, **TOL["operation", "float64"].bounds)


def test_rotation_by_halves_agrees() -> None:
    x, tables = torch.randn(5, 2, 4, dtype=torch.float64), ops.rope_tables([1.0, 0.1], torch.arange(5))
    results = []
    for implementation in ("torch", "reference"):
        with ops.force(implementation):
            results.append(ops.apply_rope(x, *tables, interleave=False))
    torch.testing.assert_close(*results, **TOL["operation", "float64"].bounds)
