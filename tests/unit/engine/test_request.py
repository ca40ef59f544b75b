"""Sampling parameters, prompts and capacity: what is accepted, and what is refused in which words."""

import math

import numpy as np
import pytest
import torch

from indexshare.engine.admission import CapacityError, check_capacity, check_prompt
from indexshare.engine.outputs import RequestStats
from indexshare.engine.params import SamplingParams
from indexshare.engine.request import Request


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_tokens", 0, "max_tokens is 0; expected an integer, 1 or more"),
        ("max_tokens", 2.0, "max_tokens is 2.0"),
        ("max_tokens", True, "max_tokens is True"),
        ("temperature", -0.1, "temperature is -0.1; expected a number, 0 or more"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", math.inf, "temperature is inf"),
        ("temperature", "1", "temperature is '1'"),
        ("temperature", True, "temperature is True"),
        ("top_k", -1, "top_k is -1; expected an integer, 0 or more; use 0 to keep all tokens"),
        ("top_k", 1.5, "top_k is 1.5"),
        ("top_p", 0.0, "top_p is 0.0; expected a number above 0 and at most 1"),
        ("top_p", 1.1, "top_p is 1.1"),
        ("top_p", math.nan, "top_p is nan"),
        ("min_p", -0.5, "min_p is -0.5; expected a number from 0 to 1"),
        ("min_p", math.nan, "min_p is nan"),
        ("repetition_penalty", 0, "repetition_penalty is 0; expected a number above 0"),
        ("presence_penalty", 2.5, "presence_penalty is 2.5; expected a number from -2 to 2"),
        ("frequency_penalty", "1", "frequency_penalty is '1'"),
        ("seed", -1, "seed is -1"),
        ("seed", 2**63, "seed is 9223372036854775808; expected an integer from 0 to"),
        ("seed", "x", "seed is 'x'"),
        ("stop", ("a", ""), "stop contains ''; expected non-empty strings"),
        ("stop", (1,), "stop contains 1"),
        ("stop", b"ab", "stop is b'ab'; expected a list of strings"),
        ("stop", 7, "stop is 7"),
        ("stop_token_ids", (1, -2), "an id in stop_token_ids is -2"),
        ("stop_token_ids", 5, "stop_token_ids is 5; expected a list of integers"),
        ("ignore_eos", 1, "ignore_eos is 1; expected True or False"),
        ("logprobs", -1, "logprobs is -1"),
        ("logprobs", True, "logprobs is True"),
    ],
)
def test_bad_parameters_are_named(field: str, value: object, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words are compared below
        SamplingParams(**{field: value})
    assert words in str(caught.value)


def test_parameters_are_normalised_and_frozen() -> None:
    params = SamplingParams(stop="end", stop_token_ids=[3, 4])
    assert params.stop == ("end",)
    assert params.stop_token_ids == (3, 4)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(temperature=0).greedy
    assert SamplingParams(top_k=1).greedy
    assert not SamplingParams().greedy
    with pytest.raises(AttributeError):
        params.seed = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        SamplingParams(5)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "prompt is empty; expected at least one token"),
        ([1, 2.0], "prompt, position 1: 2.0 is not an integer"),
        ([True], "prompt, position 0: True is not an integer"),
        ([np.bool_(True)], "is not an integer"),
        (torch.tensor([True]), "is not an integer"),
        (["a"], "prompt, position 0: 'a' is not an integer"),
        ([None], "None is not an integer"),
        ([1, 256, 3], "prompt, position 1: token id 256 is out of range; expected 0 to 255"),
        ([-1], "prompt, position 0: token id -1 is out of range"),
        (np.array([0.5]), "is not an integer"),
    ],
)
def test_bad_prompts_are_named(ids: object, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the words are compared below
        check_prompt(ids, 256)  # type: ignore[arg-type]
    assert words in str(caught.value)


@pytest.mark.parametrize("ids", [[1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2]), range(1, 3)])
def test_any_integers_become_plain_ones(ids: object) -> None:
    found = check_prompt(ids, 256)  # type: ignore[arg-type]
    assert found == [1, 2]
    assert {type(i) for i in found} == {int}


def test_capacity_is_refused_with_sizes_and_fix() -> None:
    check_capacity(90, 10, max_context=100, cache_tokens=99)
    with pytest.raises(CapacityError, match=r"100 tokens, but the context holds 100.* at most 99"):
        check_capacity(100, 1, max_context=100, cache_tokens=1000)
    with pytest.raises(CapacityError, match=r"90 prompt tokens \+ max_tokens 11 = 101 exceed .* at most 10 or"):
        check_capacity(90, 11, max_context=100, cache_tokens=1000)
    with pytest.raises(CapacityError, match=r"prompt 3: .* take 99 cache slots, but the cache has 98; raise"):
        check_capacity(90, 10, max_context=100, cache_tokens=98, name="prompt 3")


def test_statistics_report_shares_and_rates() -> None:
    stats = RequestStats(
        prompt_tokens=100,
        completion_tokens=11,
        prefill_s=0.5,
        decode_s=2.0,
        tokens_attended=30,
        tokens_available=120,
    )
    assert stats.share_attended == 0.25
    assert stats.prefill_tokens_per_s == 200
    assert stats.decode_tokens_per_s == 5
    assert stats.to_dict()["decode_tokens_per_s"] == 5
    empty = RequestStats(prompt_tokens=1)
    assert (empty.share_attended, empty.prefill_tokens_per_s, empty.decode_tokens_per_s) == (1.0, 0.0, 0.0)


def test_unseeded_requests_get_different_seeds() -> None:
    seeds = {Request([1], SamplingParams()).seed for _ in range(8)}
    assert len(seeds) == 8
    assert Request([1], SamplingParams(seed=5)).seed == 5
