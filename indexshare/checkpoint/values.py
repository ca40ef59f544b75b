"""Values that are about to be written in a narrower type: what the type cannot hold is refused by the tensor's name."""

import math

import torch

_BY_WIDTH = (torch.float16, torch.bfloat16, torch.float32)  # by the largest number they hold


def is_finite(values: torch.Tensor) -> bool:
    """Whether there is neither NaN nor an infinity among them."""
    if not values.numel():
        return True
    low, high = torch.aminmax(values)  # carries NaN through, and is as fast as memory
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))


def narrowed(values: torch.Tensor, dtype: torch.dtype, name: str, repair: str = "") -> torch.Tensor:
    """`values` on the CPU in `dtype`.

    Args:
        values: floating point, of any shape.
        name: of the tensor they belong to.
        repair: what can be done where they hold NaN or an infinity to begin with, for the error's end.

    Raises:
        ValueError: one is not finite, or too large for `dtype`; the text says which type holds it.
    """
    result = values.to(device="cpu", dtype=dtype)
    if is_finite(result):
        return result
    if not is_finite(values):
        raise ValueError(f"tensor {name!r} holds NaN or an infinity{repair}")
    largest = float(values.abs().max())
    wider = [str(kind).removeprefix("torch.") for kind in _BY_WIDTH if holds(kind, largest)]
    hint = f"write it as {wider[0]} (dtype={wider[0]!r})" if wider else "no type of a checkpoint does"
    raise ValueError(f"tensor {name!r} holds {largest:g}, which {_described(dtype)} cannot hold; {hint}")


def holds(dtype: torch.dtype, number: float) -> bool:
    """Whether a number, rounded to `dtype`, is finite there."""
    return math.isfinite(torch.tensor(number, dtype=torch.float64).to(dtype).item())


def _described(dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} (at most {torch.finfo(dtype).max:g})"
