"""Intervals: against the normal approximation, paired, repeatable, honest at the ends."""

import math

import numpy as np
import pytest

from indexshare.eval.bootstrap import Estimate, proportion, ratio
from tests.tolerance import TOL


def test_interval_of_a_mean_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(10.0, 2.0, size=400)
    estimate = ratio(values.tolist(), [1.0] * 400)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.interval is not None
    half = 1.96 * values.std() / math.sqrt(400)
    for end, expected in zip(estimate.interval, (values.mean() - half, values.mean() + half), strict=True):
        assert end - expected == pytest.approx(0, abs=TOL["bootstrap interval", "float64"].atol * half)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng, inside = np.random.default_rng(2), 0
    for seed in range(200):
        sizes = rng.uniform(1, 5, size=40)
        bits = sizes * rng.normal(1.5, 0.3, size=40)  # the truth is 1.5
        interval = ratio(bits.tolist(), sizes.tolist(), seed=seed).interval
        assert interval is not None
        inside += interval[0] <= 1.5 <= interval[1]
    assert 0.88 <= inside / 200 <= 0.99


def test_comparisons_are_paired() -> None:
    hard = np.random.default_rng(3).uniform(1, 100, size=30)  # files differ a lot, the two models by exactly 1 %
    price = ratio((1.01 * hard).tolist(), hard.tolist()).changed(1, -1)
    assert price.interval == pytest.approx((0.01, 0.01)) and price.value == pytest.approx(0.01)


def test_repeatable_and_flipped() -> None:
    data = (np.random.default_rng(0).uniform(1, 2, size=20).tolist(), [1.0] * 20)
    assert ratio(*data, seed=4) == ratio(*data, seed=4) != ratio(*data, seed=5)
    assert Estimate(0.8, (0.7, 0.95)).changed(-1, 1).interval == pytest.approx((0.05, 0.3))
    assert ratio([2.0], [4.0]) == Estimate(0.5, None) == Estimate(0.25, None).changed(2, 0)


def test_proportions() -> None:
    assert proportion(10, 10).interval == pytest.approx((0.7225, 1.0), abs=1e-4)  # Wilson's published form
    low, high = proportion(0, 10).interval or (1.0, 0.0)
    assert low == 0.0 and high == pytest.approx(0.2775, abs=1e-4)
    assert proportion(5, 10).value == 0.5


def test_refusals() -> None:
    with pytest.raises(ValueError, match="expected one of each per file"):
        ratio([], [])
    with pytest.raises(ValueError, match="leave out files"):
        ratio([1.0, 1.0], [1.0, 0.0])
    with pytest.raises(ValueError, match="at least one question"):
        proportion(0, 0)
