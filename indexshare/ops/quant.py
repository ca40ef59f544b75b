"""Weights in fewer bits: block-scaled FP8 (E4M3) as in public checkpoints, and 8 or 4 bits per group of inputs.

FP8: a matrix is cut into blocks of 128 x 128 (edge blocks are smaller); each block stores one float32 number
`scale_inv` and its values as E4M3. The public name is historical: the stored number *multiplies*,
`w = q * scale_inv[block]`. Leading dimensions (stacked experts) are independent matrices.

Groups: 32 neighbouring weights of a row share a scale, `w = q * scale[group]`, with q a whole number. This is how
weights are kept in memory for decoding (`step`), where reading them is what takes the time.

Shape letters: R rows, C columns, Rb = ceil(R / 128) and Cb = ceil(C / 128) blocks, G = ceil(C / 32) groups.
"""

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # largest finite E4M3 value
BLOCK: tuple[int, int] = (128, 128)  # rows x columns that share one scale, as in `weight_block_size`


def block_grid(shape: tuple[int, ...], block: tuple[int, int] = BLOCK) -> tuple[int, ...]:
    """Shape of the scale tensor of a weight: [..., R, C] -> [..., ceil(R/128), ceil(C/128)].

    Raises:
        ValueError: the weight has fewer than two dimensions.
    """
    if len(shape) < 2:
        raise ValueError(f"block scales need a matrix or a stack of matrices, got shape {list(shape)}")
    rows, columns = shape[-2:]
    return (*shape[:-2], -(-rows // block[0]), -(-columns // block[1]))


def _check_scale(quantized: torch.Tensor, scale_inv: torch.Tensor, block: tuple[int, int]) -> None:
    if quantized.dtype != FP8:
        raise ValueError(f"expected float8_e4m3fn values, got {quantized.dtype}")
    expected = block_grid(tuple(quantized.shape), block)
    if tuple(scale_inv.shape) != expected:
        raise ValueError(
            f"scale of shape {list(scale_inv.shape)} does not fit values of shape {list(quantized.shape)}"
            f" in blocks of {block[0]} x {block[1]}: expected {list(expected)}"
        )


def dequantize_block_fp8(
    quantized: torch.Tensor,
    scale_inv: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    block: tuple[int, int] = BLOCK,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Values times the scale of their block, computed in float32 and rounded once to `dtype`.

    Works through one strip of `block[0]` rows at a time, so that the float32 intermediate stays small.

    Args:
        quantized: float8_e4m3fn [..., R, C].
        scale_inv: float32 [..., Rb, Cb]; multiplies.
        dtype: type of the result; ignored when `out` is given.
        out: [..., R, C] tensor of any floating type to write into.

    Returns:
        [..., R, C] in `dtype` (or `out`).

    Raises:
        ValueError: the values are not E4M3 or the scale does not fit.
    """
    _check_scale(quantized, scale_inv, block)
    rows, columns = quantized.shape[-2:]
    if out is None:
        out = torch.empty(quantized.shape, dtype=dtype, device=quantized.device)
    assert out.shape == quantized.shape
    by_column = scale_inv.to(torch.float32).repeat_interleave(block[1], dim=-1)[..., :columns]  # [..., Rb, C]
    for strip, start in enumerate(range(0, rows, block[0])):
        part = slice(start, min(start + block[0], rows))
        values = quantized[..., part, :].to(torch.float32)
        out[..., part, :] = values.mul_(by_column[..., strip : strip + 1, :])
    return out


def quantize_block_fp8(weight: torch.Tensor, *, block: tuple[int, int] = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest E4M3 values under scale = absmax / 448 per block, in float32.

    A block of zeros (or of numbers too small for a float32 scale) gets scale 1 and zero values.
    The error is at most |w| / 16 for values above scale / 64 and scale / 1024 below.

    Args:
        weight: floating [..., R, C], finite.

    Returns:
        float8_e4m3fn [..., R, C] and float32 [..., Rb, Cb].

    Raises:
        ValueError: the weight holds NaN or an infinity.
    """
    rows, columns = weight.shape[-2:]
    grid = block_grid(tuple(weight.shape), block)
    quantized = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    scale_inv = torch.empty(grid, dtype=torch.float32, device=weight.device)
    padding = grid[-1] * block[1] - columns
    for strip, start in enumerate(range(0, rows, block[0])):
        part = slice(start, min(start + block[0], rows))
        values = weight[..., part, :].to(torch.float32)
        column_max = torch.nn.functional.pad(values.abs().amax(dim=-2), (0, padding))
        absmax = column_max.unflatten(-1, (grid[-1], block[1])).amax(dim=-1)  # [..., Cb]
        if not bool(torch.isfinite(absmax).all()):
            raise ValueError("cannot quantize to FP8: the weight holds NaN or an infinity")
        scale = absmax / FP8_MAX
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        by_column = scale.repeat_interleave(block[1], dim=-1)[..., None, :columns]
        # The cast does not saturate: a quotient rounded just above 448 would become NaN.
        quantized[..., part, :] = (values / by_column).clamp_(-FP8_MAX, FP8_MAX).to(FP8)
        scale_inv[..., strip, :] = scale
    return quantized, scale_inv


def dequantize_block_fp8_reference(
    quantized: torch.Tensor, scale_inv: torch.Tensor, *, block: tuple[int, int] = BLOCK
) -> torch.Tensor:
    """The definition, element by element: float8_e4m3fn [R, C], float32 [Rb, Cb] -> float32 [R, C]."""
    rows, columns = quantized.shape
    values = quantized.to(torch.float32)
    result = torch.empty(rows, columns)
    for row in range(rows):
        for column in range(columns):
            result[row, column] = values[row, column] * scale_inv[row // block[0], column // block[1]]
    return result


def quantize_block_fp8_reference(
    weight: torch.Tensor, *, block: tuple[int, int] = BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, block by block: floating [R, C] -> float8_e4m3fn [R, C], float32 [Rb, Cb]."""
    rows, columns = weight.shape
    scale_inv = torch.ones(block_grid((rows, columns), block))
    scaled = torch.empty(rows, columns)
    for i in range(scale_inv.shape[0]):
        for j in range(scale_inv.shape[1]):
            at = (slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1]))
            values = weight[at].to(torch.float32)
            scale = values.abs().max() / FP8_MAX
            if scale > 0:
                scale_inv[i, j] = scale
            scaled[at] = (values / scale_inv[i, j]).clamp(-FP8_MAX, FP8_MAX)
    return scaled.to(FP8), scale_inv


GROUP = 32  # neighbouring weights of a row that share a scale
LARGEST_WEIGHT = 3.3e38  # near the end of float32 and bfloat16, where times a rounded scale it would be infinite
INTEGER_RANGE = {8: (-127, 127), 4: (-8, 7)}  # smallest and largest q by number of bits


def quantize_groups_reference(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, group by group: floating [R, C] -> int8 [R, C] and bfloat16 scales [R, G].

    The weight of largest size becomes 127 or -127 in 8 bits, and -8 in 4 bits, where the scale takes its sign: eight
    steps on its side and seven on the other waste nothing. The scale is rounded to bfloat16 before the division.
    """
    low, high = INTEGER_RANGE[bits]
    quantized = torch.zeros(weight.shape, dtype=torch.int8)
    scales = torch.zeros(weight.shape[0], -(-weight.shape[1] // GROUP), dtype=torch.bfloat16)
    for row in range(weight.shape[0]):
        for group in range(scales.shape[1]):
            at = slice(group * GROUP, (group + 1) * GROUP)
            values = weight[row, at].to(torch.float32)
            largest = values[values.abs().argmax()]
            scales[row, group] = largest.abs() / high if bits == 8 else largest / low
            if scales[row, group] != 0:
                quotient = values / scales[row, group].to(torch.float32)
                quantized[row, at] = quotient.round().clamp(low, high).to(torch.int8)
    return quantized, scales


def quantize_groups(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_groups_reference` for whole stacks: floating [..., R, C] -> int8 [..., R, C], bfloat16 [..., R, G].

    Raises:
        ValueError: bits other than 8 or 4, or the weight holds NaN, an infinity, or a number near the end of float32.
    """
    if bits not in INTEGER_RANGE:
        raise ValueError(f"bits is {bits!r}; expected one of {sorted(INTEGER_RANGE)}")
    low, high = INTEGER_RANGE[bits]
    columns = weight.shape[-1]
    values = torch.nn.functional.pad(weight.to(torch.float32), (0, -columns % GROUP)).unflatten(-1, (-1, GROUP))
    sizes = values.abs()
    # 4 bits need the sign of the largest weight; without it the size alone is found in a fraction of the time.
    largest = sizes.amax(-1, True) if bits == 8 else values.gather(-1, sizes.argmax(-1, keepdim=True))
    if not bool((largest.abs() <= LARGEST_WEIGHT).all()):
        kind = f"a number above {LARGEST_WEIGHT:g}" if bool(torch.isfinite(largest).all()) else "NaN or an infinity"
        raise ValueError(f"cannot quantize to {bits} bits: the weight holds {kind}")
    scales = (largest / (high if bits == 8 else low)).to(torch.bfloat16)
    divisor = torch.where(scales == 0, torch.ones_like(scales), scales).to(torch.float32)
    quantized = (values / divisor).round_().clamp_(low, high).masked_fill_(scales == 0, 0).to(torch.int8)
    return quantized.flatten(-2)[..., :columns].contiguous(), scales[..., 0].contiguous()


def dequantize_groups(quantized: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values times the scale of their group, in float32, rounded once: int8 [..., R, C], [..., R, G] -> [..., R, C]."""
    by_column = scales.to(torch.float32).repeat_interleave(GROUP, dim=-1)[..., : quantized.shape[-1]]
    return (quantized.to(torch.float32) * by_column).to(dtype)
