"""Norms and rotary embedding against their formulas, forward and backward."""

import pytest
import torch

from indexshare import ops
from indexshare.config import RopeParameters
from indexshare.ops.rows import reference
from tests.tolerance import TOL


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 8), (7, 63), (3, 5, 256)])
def test_rms_norm_equals_its_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape).to(dtype) * 3, torch.randn(shape[-1]).to(dtype)
    expected = reference.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), expected, **TOL["rms norm", str(dtype)[6:]].bounds)


def test_rms_norm_gradient() -> None:
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: ops.rms_norm(a, b, 1e-5), (x, weight))


def test_rms_norm_of_zeros_is_zero() -> None:
    assert not ops.rms_norm(torch.zeros(2, 4), torch.ones(4), 1e-6).any()


@pytest.mark.parametrize("interleave", [True, False])
def test_rope_is_a_rotation_that_depends_on_distance_only(interleave: bool) -> None:
    frequencies = RopeParameters(rope_theta=1e4).inverse_frequencies(16)
    q, k = torch.randn(1, 1, 16), torch.randn(1, 1, 16)

    def product(at_q: int, at_k: int) -> torch.Tensor:
        tables = [ops.rope_tables(frequencies, torch.tensor([p])) for p in (at_q, at_k)]
        turned = [ops.apply_rope(x, *t, interleave=interleave) for x, t in zip((q, k), tables, strict=True)]
        return (turned[0] * turned[1]).sum()

    bounds = TOL["rope distance", "float32"].bounds
    torch.testing.assert_close(product(3000, 2995), product(5, 0), **bounds)
    assert abs(product(5, 0) - product(6, 0)) > 1e-3


def test_rope_layouts_differ_and_match_explicit_pairs() -> None:
    x = torch.arange(4.0).view(1, 1, 4)
    cos, sin = ops.rope_tables([1.0, 0.1], torch.tensor([2]))
    c, s = cos[0], sin[0]
    pairs = ops.apply_rope(x, cos, sin, interleave=True)[0, 0]
    torch.testing.assert_close(pairs, torch.stack([-s[0] * 1, c[0] * 1, c[1] * 2 - s[1] * 3, c[1] * 3 + s[1] * 2]))
    halves = ops.apply_rope(x, cos, sin, interleave=False)[0, 0]
    torch.testing.assert_close(halves, torch.stack([-s[0] * 2, c[1] * 1 - s[1] * 3, c[0] * 2, c[1] * 3 + s[1] * 1]))


def test_yarn_keeps_fast_dimensions_and_divides_slow_ones() -> None:
    plain = RopeParameters(rope_theta=1e4).inverse_frequencies(64)
    yarn = RopeParameters(rope_theta=1e4, rope_type="yarn", factor=40.0).inverse_frequencies(64)
    assert yarn[0] == plain[0]
    assert yarn[-1] == pytest.approx(plain[-1] / 40)
    assert all(a >= b for a, b in zip(plain, yarn, strict=True))
