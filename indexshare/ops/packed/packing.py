"""Weights of 8 or 4 bits in the order in which the decode step reads them (`quantized.hpp`).

Blocks of 16 rows lie side by side, group of inputs by group of inputs, in quads of four inputs:

* 8 bits: `[S, blocks, groups, 8 quads, 16 rows, 4 inputs]` bytes, each a weight plus 128;
* 4 bits: `[S, blocks, groups, 4, 16 rows, 4 inputs]` bytes; byte (j, r, i) holds the weight of quad j in its low half
  and that of quad j + 4 in its high half, each plus 8;
* scales: `[S, blocks, groups, 16 rows]` bfloat16.

Rows and inputs beyond the matrix have scale zero and weight zero.
Shape letters: S matrices of a stack, R rows, C inputs.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from indexshare.ops.native import native
from indexshare.ops.packed.matrix import INT4, INT8, Matrix
from indexshare.ops.quant import GROUP, quantize_groups

BLOCK_ROWS = 16
_QUADS = GROUP // 4
_OFFSET = {8: 128, 4: 8}
_VALUES_AT_A_TIME = 1 << 18  # quantised at once; about 20 bytes each while it lasts


@dataclass(frozen=True)
class PackedWeight:
    """A stack of S quantised matrices `[R, C]`.

    Attributes:
        values: uint8, `scales`: the bits of bfloat16 as int16, both as described above.
        bits: 8 or 4.
        rows, inputs: R and C.
    """

    values: Tensor
    scales: Tensor
    bits: int
    rows: int
    inputs: int

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values.nbytes + self.scales.nbytes

    def matrix(self) -> Matrix:
        """The form that the C++ side takes; it borrows the tensors."""
        return Matrix(
            values=self.values.data_ptr(), scales=self.scales.data_ptr(), kind=INT8 if self.bits == 8 else INT4,
            rows=self.rows, inputs=self.inputs, stride=self.values[0].nbytes, scale_stride=self.scales[0].nbytes,
        )  # fmt: skip

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weights, float32 products of weight and scale rounded once to `dtype`, `[S, R, C]`."""
        kernels = native().library
        if kernels is None or self.values.device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
            return unpack(self, dtype)
        out = torch.empty(self.values.shape[0], self.rows, self.inputs, dtype=dtype)
        kernels.indexshare_dequantize(
            dtype == torch.bfloat16, ctypes.byref(self.matrix()), out.shape[0], out.data_ptr(), torch.get_num_threads(),
        )  # fmt: skip
        return out


def pack(weight: Tensor, bits: int) -> PackedWeight:
    """Quantise a matrix `[R, C]` or a stack `[S, R, C]`.

    Raises:
        ValueError: see `ops.quant.quantize_groups`.
    """
    stack = weight[None] if weight.ndim == 2 else weight
    count, rows, inputs = stack.shape
    packed = empty(count, rows, inputs, bits)
    pack_into(packed, 0, stack)
    return packed


def empty(stack: int, rows: int, inputs: int, bits: int) -> PackedWeight:
    """Memory for a stack of `stack` matrices, to be filled by `pack_into`."""
    blocks, groups = -(-rows // BLOCK_ROWS), -(-inputs // GROUP)
    values = torch.empty(stack, blocks, groups, _QUADS * bits // 8, BLOCK_ROWS, 4, dtype=torch.uint8)
    scales = torch.empty(stack, blocks, groups, BLOCK_ROWS, dtype=torch.int16)
    return PackedWeight(values, scales, bits, rows, inputs)


def pack_into(packed: PackedWeight, first: int, weight: Tensor) -> None:
    """Quantise a stack `[n, R, C]` as the matrices `first ... first + n - 1` of a packed stack.

    Works through some rows at a time, so that what it computes with stays small.

    Raises:
        ValueError: see `ops.quant.quantize_groups`.
    """
    step = max(_VALUES_AT_A_TIME // (BLOCK_ROWS * packed.inputs), 1) * BLOCK_ROWS
    for number, matrix in enumerate(weight, first):
        for start in range(0, packed.rows, step):
            values, scales = _blocks(matrix[start : start + step], packed.bits)
            block = start // BLOCK_ROWS
            packed.values[number, block : block + len(values)].view(torch.int32)[..., 0] = values
            packed.scales[number, block : block + len(scales)] = scales


def _blocks(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Rows `[n, C]` as blocks of 16: quads of values as int32 `[blocks, groups, quads, 16]`, and scales."""
    quantized, scales = quantize_groups(weight, bits)
    rows, inputs = quantized.shape
    padding, groups = (0, -inputs % GROUP, 0, -rows % BLOCK_ROWS), scales.shape[-1]
    values = F.pad(quantized.to(torch.int16), padding).add_(_OFFSET[bits]).to(torch.uint8)
    values = values.view(-1, BLOCK_ROWS, groups, _QUADS, 4)
    if bits == 4:
        values = values[..., : _QUADS // 2, :] | values[..., _QUADS // 2 :, :] << 4
    quads = values.view(torch.int32)[..., 0].permute(0, 2, 3, 1)
    scales = F.pad(scales, (0, 0, *padding[2:])).view(-1, BLOCK_ROWS, groups).transpose(1, 2)
    return quads, scales.contiguous().view(torch.int16)


def unpack(packed: PackedWeight, dtype: torch.dtype) -> Tensor:
    """`PackedWeight.dequantize` in plain torch: the definition of the layout."""
    values = packed.values
    if packed.bits == 4:
        values = torch.cat((values & 15, values >> 4), dim=3)
    scales = packed.scales.view(torch.bfloat16).float()[:, :, :, None, :, None]
    scaled = (values.float() - _OFFSET[packed.bits]) * scales
    stack = scaled.permute(0, 1, 4, 2, 3, 5).flatten(1, 2).flatten(2)
    return stack[:, : packed.rows, : packed.inputs].to(dtype).contiguous()
