"""Packed weights: the layout holds exactly what was quantised, and the kernel reads it as torch does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexshare.ops.native import native
from indexshare.ops.packed.packing import BLOCK_ROWS, pack, unpack
from indexshare.ops.quant import dequantize_groups, quantize_groups

bits = st.sampled_from([8, 4])
sizes = st.integers(1, 75)


@settings(max_examples=60, deadline=None)
@given(stack=st.integers(1, 3), rows=sizes, inputs=sizes, bits=bits, seed=st.integers(0, 2**31))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packing_loses_nothing(dtype: torch.dtype, stack: int, rows: int, inputs: int, bits: int, seed: int) -> None:
    weight = torch.randn(stack, rows, inputs, generator=torch.Generator().manual_seed(seed))
    packed = pack(weight, bits)
    expected = dequantize_groups(*quantize_groups(weight, bits), dtype)
    assert torch.equal(unpack(packed, dtype), expected)
    assert torch.equal(packed.dequantize(dtype), expected)  # in C++ where there is a compiler


def test_bytes_per_weight() -> None:
    weight = torch.randn(4 * BLOCK_ROWS, 256)
    assert pack(weight, 8).nbytes == weight.numel() * (1 + 2 / 32)
    assert pack(weight, 4).nbytes == weight.numel() * (1 / 2 + 2 / 32)


def test_without_kernels_torch_unpacks(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(torch.randn(20, 40), 4)
    expected = packed.dequantize(torch.float32)
    missing = type(native())(library=None, level="", reason="none")
    monkeypatch.setattr("indexshare.ops.packed.packing.native", lambda: missing)
    assert torch.equal(packed.dequantize(torch.float32), expected)
    assert packed.dequantize(torch.float64).dtype == torch.float64
