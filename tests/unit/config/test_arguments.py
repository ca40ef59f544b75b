"""Numbers that callers give: those of numpy and torch are numbers too, everything else is one clear line."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from indexshare.config import SharePlan, preset
from indexshare.config.arguments import as_integer, as_number
from indexshare.engine.params import SamplingParams
from indexshare.planner.flops import prefill_flops


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)])
def test_an_integer_of_any_library(value: Any) -> None:
    number = as_integer("n", value, low=0)
    assert number == 3 and type(number) is int


@pytest.mark.parametrize("value", [True, np.bool_(True), torch.tensor(True), 3.0, np.float32(3), "3", None, [3], -1, 9])
def test_what_is_no_integer_in_range(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^n is .*; expected an integer from 0 to 8; do so$"):
        as_integer("n", value, low=0, high=8, hint="; do so")


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5), Fraction(1, 2)])
def test_a_number_of_any_library(value: Any) -> None:
    number = as_number("x", value, "a number", lambda x: x > 0)
    assert number == 0.5 and type(number) is float


@pytest.mark.parametrize(
    "value", [True, "0.5", b"1", None, math.nan, math.inf, -1, 10**400, torch.zeros(2), np.zeros(2), 1j]
)
def test_what_is_no_finite_positive_number(value: Any) -> None:
    with pytest.raises(ValueError, match="expected a positive number"):
        as_number("x", value, "a positive number", lambda x: x > 0)


def test_they_are_taken_wherever_numbers_are() -> None:
    params = SamplingParams(max_tokens=np.int32(5), temperature=np.float32(0), seed=np.uint64(7), logprobs=np.int8(1))
    assert params == SamplingParams(max_tokens=5, temperature=0.0, seed=7, logprobs=1)
    assert type(params.max_tokens) is int and type(params.seed) is int
    assert SharePlan.uniform(np.int64(6), every=np.int64(2)) == SharePlan.uniform(6, every=2)
    config = preset("tiny").replace(vocab_size=np.int64(320))
    assert type(config.vocab_size) is int
    assert prefill_flops(config, np.int64(64)) == prefill_flops(config, 64)
