"""The C++ row operations and routing against plain torch: shapes, strides, results in place, numbers that are none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexshare.ops.experts import cpu_impl as experts_cpu
from indexshare.ops.experts import reference as experts_reference
from indexshare.ops.experts import torch_impl as experts_torch
from indexshare.ops.native import native
from indexshare.ops.rows import cpu_impl as rows
from indexshare.ops.rows import reference, torch_impl
from tests.tolerance import TOL

pytestmark = pytest.mark.skipif(native().library is None, reason=native().reason)
DTYPES = [torch.float32, torch.bfloat16]
ROWS, WIDTHS = st.sampled_from([0, 1, 3, 200]), st.integers(1, 70)


def apart(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Random values whose last dimension starts at an odd place of a wider buffer of NaN."""
    buffer = torch.full((*shape[:-1], shape[-1] + 3), torch.nan, dtype=dtype)
    view = buffer[..., 1 : shape[-1] + 1]
    return view.copy_(torch.randn(shape))


@settings(deadline=None, max_examples=40)
@given(count=ROWS, width=WIDTHS, dtype=st.sampled_from(DTYPES))
def test_rms_norm(count: int, width: int, dtype: torch.dtype) -> None:
    x, weight = apart((count, width), dtype), torch.rand(width).to(dtype)
    expected = reference.rms_norm(x, weight, 1e-5)
    bounds = TOL["rms norm", str(dtype)[6:]].bounds
    torch.testing.assert_close(rows.rms_norm(x, weight, 1e-5), expected, **bounds)
    assert rows.rms_norm(x, weight, 1e-5, out=x) is not None
    torch.testing.assert_close(x, expected, **bounds)


@settings(deadline=None, max_examples=40)
@given(
    count=ROWS,
    heads=st.integers(1, 4),
    pairs=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
    interleave=st.booleans(),
)
def test_apply_rope(count: int, heads: int, pairs: int, dtype: torch.dtype, interleave: bool) -> None:
    x = apart((count, heads, 2 * pairs), dtype)
    tables = reference.rope_tables([1e-2 * 0.9**i for i in range(pairs)], torch.arange(count) * 50)
    expected = torch_impl.apply_rope(x, *tables, interleave=interleave)
    bounds = TOL["rotation", str(dtype)[6:]].bounds
    torch.testing.assert_close(rows.apply_rope(x, *tables, interleave=interleave), expected, **bounds)
    rows.apply_rope(x, *tables, interleave=interleave, out=x)
    torch.testing.assert_close(x, expected, **bounds)


@settings(deadline=None, max_examples=40)
@given(count=ROWS, width=WIDTHS, columns=st.sampled_from([1, 8, 70]), dtype=st.sampled_from(DTYPES))
def test_wide_linear(count: int, width: int, columns: int, dtype: torch.dtype) -> None:
    width += width % 2
    x, weight = apart((count, width), dtype), torch.randn(columns, width).to(dtype)
    expected = (x.double() @ weight.double().T).float()
    got = rows.wide_linear(x, weight)
    torch.testing.assert_close(got, expected, **TOL["wide product", "float32"].bounds)
    torch.testing.assert_close(torch_impl.wide_linear(x, weight), expected, **TOL["wide product", "float32"].bounds)
    for row in range(min(count, 3)):
        assert torch.equal(rows.wide_linear(x[row : row + 1], weight), got[row : row + 1])


def test_wide_linear_is_for_bfloat16_of_even_width_without_gradients() -> None:
    weight = torch.randn(3, 6, dtype=torch.bfloat16)
    assert rows.wide_linear_unsupported(torch.randn(2, 6, dtype=torch.bfloat16), weight) is None
    assert "nothing has to be widened" in str(rows.wide_linear_unsupported(torch.randn(2, 6), weight.float()))
    assert "odd" in str(rows.wide_linear_unsupported(torch.randn(2, 5, dtype=torch.bfloat16), weight[:, :5]))
    assert "gradients" in str(rows.wide_linear_unsupported(weight, weight.clone().requires_grad_()))


@settings(deadline=None, max_examples=40)
@given(count=ROWS, width=WIDTHS, dtype=st.sampled_from(DTYPES))
def test_swiglu(count: int, width: int, dtype: torch.dtype) -> None:
    gate, up = apart((count, 2 * width), dtype).mul_(4).chunk(2, dim=-1)
    expected = torch_impl.swiglu(gate, up)
    torch.testing.assert_close(rows.swiglu(gate, up), expected, **TOL["swiglu", str(dtype)[6:]].bounds)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_are_none_stay_none(dtype: torch.dtype) -> None:
    gate = torch.tensor([[torch.nan, torch.inf, -torch.inf, 200.0, -200.0, 0.0]], dtype=dtype)
    up = torch.ones_like(gate)
    torch.testing.assert_close(rows.swiglu(gate, up), torch_impl.swiglu(gate, up), equal_nan=True)
    x = torch.tensor([[1.0, torch.nan], [torch.inf, 1.0], [0.0, 0.0]], dtype=dtype)
    expected = torch_impl.rms_norm(x, torch.ones(2, dtype=dtype), 1e-6)
    torch.testing.assert_close(rows.rms_norm(x, torch.ones(2, dtype=dtype), 1e-6), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(dtype: torch.dtype, threads: int) -> None:
    x, weight = torch.randn(1000, 96).to(dtype), torch.rand(96).to(dtype)
    before, expected = torch.get_num_threads(), rows.rms_norm(x, weight, 1e-5)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(rows.rms_norm(x, weight, 1e-5), expected)
    finally:
        torch.set_num_threads(before)


def test_what_it_refuses() -> None:
    x = torch.randn(2, 4)
    assert rows.unsupported(x, x) is None
    assert rows.unsupported(x.double()) is not None
    assert rows.unsupported(x, x.bfloat16()) is not None
    with torch.enable_grad():
        assert rows.unsupported(x.requires_grad_()) == "gradients are wanted"


@pytest.mark.parametrize("groups", [1, 4])
def test_routing_puts_nan_first(groups: int) -> None:
    scores, bias = torch.rand(30, 16), torch.randn(16)
    scores[3, 5] = scores[4, 0] = torch.nan
    bias[2] = -torch.inf
    options = {"topk": 3, "groups": groups, "topk_groups": 2, "normalise": False, "scale": 1.5}
    ids, weights = experts_cpu.route(scores, bias, **options)
    wanted_ids, wanted = experts_reference.route(scores, bias, **options)
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(weights, wanted, equal_nan=True)


def test_routing_refuses_more_experts_than_are_eligible() -> None:
    with pytest.raises(ValueError, match="4 experts are eligible"):
        experts_cpu.route(torch.rand(2, 8), torch.zeros(8), topk=5, groups=2, topk_groups=1, normalise=True, scale=1.0)


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 60), chosen=st.integers(1, 4), experts=st.integers(4, 20), grain=st.sampled_from([1, 2, 8])
)
def test_sorting_by_expert(tokens: int, chosen: int, experts: int, grain: int) -> None:
    ids = torch.stack([torch.randperm(experts)[:chosen].sort().values for _ in range(tokens)])
    for actual, expected in zip(
        experts_cpu.group(ids, experts, grain), experts_torch.group(ids, experts, grain), strict=True
    ):
        assert torch.equal(torch.as_tensor(actual), torch.as_tensor(expected))


@settings(deadline=None, max_examples=25)
@given(
    tokens=st.integers(1, 60), half_hidden=st.integers(1, 80), half_inner=st.integers(1, 40),
    dtype=st.sampled_from(DTYPES),
)  # fmt: skip
def test_products_of_experts(tokens: int, half_hidden: int, half_inner: int, dtype: torch.dtype) -> None:
    """Our own products against one token at a time; the last expert has no token, rows of x lie apart."""
    hidden, inner = 2 * half_hidden, 2 * half_inner
    ids = torch.stack([torch.randperm(5)[:2].sort().values for _ in range(tokens)])
    x, weights = apart((tokens, hidden), dtype), torch.rand(tokens, 2)
    gate_up = (torch.randn(6, 2 * inner, hidden) * hidden**-0.5).to(dtype)
    down = (torch.randn(6, hidden, inner) * inner**-0.5).to(dtype)
    actual = experts_cpu.products(x, ids, weights, gate_up, down)
    expected = experts_reference.experts(x, ids, weights, gate_up, down)
    torch.testing.assert_close(actual, expected, **TOL["products of experts", str(dtype)[6:]].bounds)
    for row in (0, tokens - 1):  # a token's sum does not depend on the others
        alone = experts_cpu.products(x[row : row + 1], ids[row : row + 1], weights[row : row + 1], gate_up, down)
        assert torch.equal(alone[0], actual[row])


@pytest.mark.parametrize("features", [frozenset(), frozenset({"amx_bf16"})])
def test_products_are_the_librarys_where_it_is_faster(
    features: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts_cpu, "processor_features", lambda: features)
    ours = native().level == "avx512bf16" and not features
    assert experts_cpu._library_is_faster(torch.bfloat16) != ours
    assert experts_cpu._library_is_faster(torch.float32)
