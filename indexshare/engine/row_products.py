"""From how many rows on a product gives each row the same bits, whatever stands beside it: tried, not assumed.

A library chooses its way of multiplying by the shapes. In float32 on a CPU one to three rows that are left over are
multiplied in another way, and how many are left over for a thread depends on their number; in bfloat16 any number of
rows may be. Only where rows are independent may a prompt be cut anywhere.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_TRIED = (16, 32, 64, 128)
_MOST_WIDTH = 2048  # of the rows that are tried


def fewest_rows(weight: Tensor) -> int | None:
    """The least number of rows from which on their bits are their own in products with matrices like `weight` `[R, C]`.

    None when there is none up to 128.
    """
    width = min(weight.shape[1], _MOST_WIDTH)
    return _fewest(width, weight.dtype, str(weight.device), torch.get_num_threads())


@cache
def _fewest(width: int, dtype: torch.dtype, device: str, threads: int) -> int | None:
    generator = torch.Generator().manual_seed(width)
    rows = torch.randn(640, width, generator=generator).to(device, dtype)
    matrix = torch.randn(128, width, generator=generator).to(device, dtype)
    with torch.inference_mode():
        whole = torch.nn.functional.linear(rows, matrix)
        for least in _TRIED:
            sizes = [*range(least, least + 16), 2 * least + 1, 3 * least + 2, 257, 511]
            if all(torch.equal(torch.nn.functional.linear(rows[:n], matrix), whole[:n]) for n in sizes):
                return least
    return None
