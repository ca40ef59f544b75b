"""How sure a figure is: intervals from resampling files, and from counting right answers.

Files, not tokens, are resampled: tokens of one file are alike, and intervals over tokens would be far too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_NORMAL_95 = 1.959964  # standard deviations that hold 95 % of a normal distribution on both sides


Interval = tuple[float, float]  # low and high end, at 95 %


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval; None where one file alone says nothing about others."""

    value: float
    interval: Interval | None

    def changed(self, scale: float, shift: float) -> Estimate:
        """`scale * figure + shift`, the interval with it; its ends are exchanged by a negative scale."""
        if self.interval is None:
            return Estimate(scale * self.value + shift, None)
        low, high = sorted(scale * end + shift for end in self.interval)
        return Estimate(scale * self.value + shift, (low, high))


def ratio(numerators: Sequence[float], denominators: Sequence[float], *, seed: int = 0) -> Estimate:
    """`sum(numerators) / sum(denominators)` over files, with its percentile bootstrap interval (Efron 1979).

    Both sums are taken over the same resampled files. So bits over bytes are bits per byte of the whole, and bits of
    one model over bits of another are a paired comparison, in which what makes a file hard for both cancels.

    Args:
        numerators, denominators: one of each per file; denominators positive.
        seed: the interval is a function of it and the data.

    Raises:
        ValueError: no files, or sequences of different lengths.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if above.shape != below.shape or above.ndim != 1 or not above.size:
        raise ValueError(f"{above.size} numerators and {below.size} denominators; expected one of each per file")
    if not (below > 0).all():
        raise ValueError("a denominator is not positive; leave out files of which nothing was scored")
    value = float(above.sum() / below.sum())
    if above.size == 1:
        return Estimate(value, None)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(above.size, np.full(above.size, 1 / above.size), size=RESAMPLES)
    low, high = np.quantile((draws @ above) / (draws @ below), (0.025, 0.975))
    return Estimate(value, (float(low), float(high)))


def proportion(right: int, asked: int) -> Estimate:
    """Part of right answers with the Wilson score interval, which stays honest at none and at all.

    Raises:
        ValueError: nothing was asked, or more was right than asked.
    """
    if not 0 <= right <= asked or asked == 0:
        raise ValueError(
            f"{right} right of {asked} asked; expected at least one question, and no more right than asked"
        )
    part, z2 = right / asked, _NORMAL_95**2
    centre = (part + z2 / (2 * asked)) / (1 + z2 / asked)
    half = _NORMAL_95 / (1 + z2 / asked) * math.sqrt(part * (1 - part) / asked + z2 / (4 * asked**2))
    return Estimate(part, (max(0.0, centre - half), min(1.0, centre + half)))
