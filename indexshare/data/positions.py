"""Rotary positions of short rows, spread over a long context."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

_STRETCHED_PARTS = 3  # of a row, with a jump between each two


def stretched_positions(rows: int, length: int, reach: int, *, seed: Sequence[int]) -> torch.Tensor:
    """Rotary positions that spread short rows over a long context, so that far distances are seen in training.

    Each row is cut at random places; the parts after a cut are moved on by random distances. How far the row reaches
    is log-uniform between `length` and `reach`, so that all scales occur. (Positional skip-wise training, Zhu et al.,
    "PoSE", ICLR 2024, section 3, with three parts and log-uniform reach.)

    Args:
        rows, length: of the batch.
        reach: most positions that a row spans; at least `length`.
        seed: the result is a function of it and the sizes.

    Returns:
        int64 [rows, length], strictly increasing along each row, from 0 to below `reach`.

    Raises:
        ValueError: `reach` is less than `length`.
    """
    if reach < length:
        raise ValueError(f"reach is {reach}; rows of {length} tokens need at least as many positions")
    rng = np.random.default_rng(list(seed))
    jumps = _STRETCHED_PARTS - 1
    spans = np.exp(rng.uniform(math.log(length), math.log(reach), size=rows)).astype(np.int64).clip(length, reach)
    # A jump's size: the total cut at uniform places, as the parts of a stick.
    sticks = np.sort(rng.uniform(size=(rows, jumps)), axis=1)
    totals = np.floor(sticks * (spans - length + 1)[:, None]).astype(np.int64).clip(max=(spans - length)[:, None])
    cuts = np.sort(rng.integers(1, max(length, 2), size=(rows, jumps)), axis=1)
    places = np.arange(length)
    positions = np.repeat(places[None], rows, axis=0)
    for jump in range(jumps):
        step = totals[:, jump] - (totals[:, jump - 1] if jump else 0)
        positions += np.where(places >= cuts[:, jump, None], step[:, None], 0)
    return torch.from_numpy(positions)
