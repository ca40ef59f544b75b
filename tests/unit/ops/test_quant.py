"""Block-scaled FP8 and integer groups: twins agree bit for bit, error bounds hold, edge blocks and bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexshare.ops.quant import (
    FP8,
    FP8_MAX,
    GROUP,
    INTEGER_RANGE,
    block_grid,
    dequantize_block_fp8,
    dequantize_block_fp8_reference,
    dequantize_groups,
    quantize_block_fp8,
    quantize_block_fp8_reference,
    quantize_groups,
    quantize_groups_reference,
)

SMALL = (8, 8)  # small blocks make many blocks and ragged edges cheap
sizes = st.integers(1, 27)


def random_matrix(rows: int, columns: int, seed: int, spread: float) -> torch.Tensor:
    """Normal values whose magnitude varies from row to row and column to column by `spread` decades."""
    generator = torch.Generator().manual_seed(seed)
    by_row, by_column = torch.rand(rows, 1, generator=generator), torch.rand(1, columns, generator=generator)
    decades = spread * (by_row + by_column - 1)
    return torch.randn(rows, columns, generator=generator) * 10**decades


@settings(max_examples=60, deadline=None)
@given(rows=sizes, columns=sizes, seed=st.integers(0, 2**31), spread=st.sampled_from([0.0, 2.0, 12.0]))
def test_fast_path_equals_reference_bit_for_bit(rows: int, columns: int, seed: int, spread: float) -> None:
    weight = random_matrix(rows, columns, seed, spread)
    quantized, scale = quantize_block_fp8(weight, block=SMALL)
    expected, expected_scale = quantize_block_fp8_reference(weight, block=SMALL)
    assert torch.equal(quantized.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(scale, expected_scale)
    restored = dequantize_block_fp8(quantized, scale, block=SMALL)
    assert torch.equal(restored, dequantize_block_fp8_reference(quantized, scale, block=SMALL))


@settings(max_examples=60, deadline=None)
@given(rows=sizes, columns=sizes, seed=st.integers(0, 2**31), spread=st.sampled_from([0.0, 3.0]))
def test_error_stays_within_the_format(rows: int, columns: int, seed: int, spread: float) -> None:
    weight = random_matrix(rows, columns, seed, spread)
    quantized, scale = quantize_block_fp8(weight, block=SMALL)
    assert bool(torch.isfinite(quantized.to(torch.float32)).all())
    error = (dequantize_block_fp8(quantized, scale, block=SMALL) - weight).abs()
    scale_of = scale.repeat_interleave(SMALL[0], 0)[:rows].repeat_interleave(SMALL[1], 1)[:, :columns]
    # Three mantissa bits: half a step is |w| / 16 for normal numbers, 2^-10 for subnormal ones.
    bound = torch.maximum(weight.abs() / 16, scale_of / 1024)
    assert bool((error <= bound * (1 + 1e-5)).all())


@settings(max_examples=30, deadline=None)
@given(rows=sizes, columns=sizes, seed=st.integers(0, 2**31))
def test_quantizing_restored_values_changes_nothing(rows: int, columns: int, seed: int) -> None:
    quantized, scale = quantize_block_fp8(random_matrix(rows, columns, seed, 1.0), block=SMALL)
    again, _ = quantize_block_fp8(dequantize_block_fp8(quantized, scale, block=SMALL), block=SMALL)
    assert torch.equal(again.to(torch.float32), quantized.to(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_public_shape_with_a_partial_edge_block(dtype: torch.dtype) -> None:
    # kv_a_proj of GLM-5.2 has 576 rows: five row blocks, the last 64 rows high.
    weight = random_matrix(576, 200, 0, 1.0).to(dtype)
    quantized, scale = quantize_block_fp8(weight)
    assert scale.shape == (5, 2)
    assert scale[4, 1] == weight[512:, 128:].float().abs().max() / FP8_MAX
    out = torch.full((576, 200), float("nan"), dtype=dtype)
    dequantize_block_fp8(quantized, scale, out=out)
    assert torch.equal(out, dequantize_block_fp8_reference(quantized, scale).to(dtype))


def test_stacked_matrices_are_independent() -> None:
    stack = torch.stack([random_matrix(20, 9, seed, 2.0) for seed in range(3)])
    quantized, scale = quantize_block_fp8(stack, block=SMALL)
    assert scale.shape == block_grid((3, 20, 9), SMALL) == (3, 3, 2)
    for one, (values, scales) in zip(stack, zip(quantized, scale, strict=True), strict=True):
        alone, alone_scale = quantize_block_fp8(one, block=SMALL)
        assert torch.equal(values.view(torch.uint8), alone.view(torch.uint8))
        assert torch.equal(scales, alone_scale)
    restored = dequantize_block_fp8(quantized, scale, block=SMALL)
    assert torch.equal(restored[1], dequantize_block_fp8(quantized[1], scale[1], block=SMALL))


def test_zero_and_vanishing_blocks_stay_finite() -> None:
    weight = torch.zeros(16, 8)
    weight[8:] = 1e-44  # absmax / 448 underflows to zero in float32
    quantized, scale = quantize_block_fp8(weight, block=SMALL)
    assert scale.tolist() == [[1.0], [1.0]]
    assert not quantized.to(torch.float32).any()


def test_scale_multiplies() -> None:
    quantized = torch.full((1, 1), 2.0).to(FP8)
    assert dequantize_block_fp8(quantized, torch.tensor([[0.5]])).item() == 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weights_are_refused(value: float) -> None:
    weight = torch.ones(9, 9)
    weight[8, 8] = value
    with pytest.raises(ValueError, match="NaN or an infinity"):
        quantize_block_fp8(weight, block=SMALL)


def test_shapes_and_types_are_checked() -> None:
    quantized, scale = quantize_block_fp8(torch.ones(130, 4))
    with pytest.raises(ValueError, match=r"expected \[2, 1\]"):
        dequantize_block_fp8(quantized, scale[:1])
    with pytest.raises(ValueError, match="float8_e4m3fn"):
        dequantize_block_fp8(torch.ones(2, 2), torch.ones(1, 1))
    with pytest.raises(ValueError, match="matrix"):
        block_grid((7,))


@settings(max_examples=60, deadline=None)
@given(
    rows=sizes, columns=st.integers(1, 100), bits=st.sampled_from([8, 4]), seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.0, 2.0, 12.0]),
)  # fmt: skip
def test_groups_equal_the_reference_and_keep_the_error_bound(
    rows: int, columns: int, bits: int, seed: int, spread: float
) -> None:
    weight = random_matrix(rows, columns, seed, spread)
    weight[0, : columns // 2] = 0
    quantized, scales = quantize_groups(weight, bits)
    expected, expected_scales = quantize_groups_reference(weight, bits)
    assert torch.equal(quantized, expected) and torch.equal(scales, expected_scales)
    restored = dequantize_groups(quantized, scales, torch.float32)
    padded = torch.nn.functional.pad(weight, (0, -columns % GROUP)).unflatten(-1, (-1, GROUP))
    largest = padded.abs().amax(-1).repeat_interleave(GROUP, dim=-1)[:, :columns]
    # Half a step, or what the clamp cuts off: a rounded scale, and in 4 bits a whole step on the shorter side.
    bound = largest * ((0.5 / 127 + 2**-8) if bits == 8 else (1 / 8 + 2**-8))
    assert bool(((restored - weight).abs() <= bound).all())
    low, high = INTEGER_RANGE[bits]
    assert int(quantized.min()) >= low and int(quantized.max()) <= high


def test_groups_of_a_stack_are_those_of_its_matrices() -> None:
    stack = torch.randn(3, 5, 70)
    quantized, scales = quantize_groups(stack, 4)
    for n in range(3):
        one, one_scales = quantize_groups(stack[n], 4)
        assert torch.equal(quantized[n], one) and torch.equal(scales[n], one_scales)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_groups_refuse_what_is_not_finite(bad: float) -> None:
    weight = torch.randn(3, 40)
    weight[1, 39] = bad
    with pytest.raises(ValueError, match="cannot quantize to 8 bits: the weight holds NaN or an infinity"):
        quantize_groups(weight, 8)
    with pytest.raises(ValueError, match=r"bits is 5; expected one of \[4, 8\]"):
        quantize_groups(torch.randn(2, 2), 5)
