"""The sampler against its reference: the same tokens kept, the same draws, the promised distribution."""

import itertools
import math
import random

import pytest
import torch

from indexshare.engine.params import SamplingParams
from indexshare.engine.sampler import Draw, kept, non_finite_rows, sample, token_logprobs, uniform
from indexshare.engine.sampler_reference import choose, probabilities
from tests.tolerance import TOL

FILTERS = [
    {},
    {"temperature": 0.7},
    {"temperature": 2.5, "top_k": 5},
    {"top_p": 0.9},
    {"top_p": 0.3, "temperature": 0.5},
    {"min_p": 0.1},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.02, "temperature": 1.3},
    {"top_k": 3, "top_p": 0.999},
    {"top_k": 10_000, "top_p": 1.0},
    {"top_p": 1e-9},
    {"min_p": 1.0},
    {"temperature": 1e-6},
    {"temperature": 0.0, "top_k": 7},
    {"top_k": 1, "temperature": 3.0},
]


def random_logits(vocab: int, seed: int, *, ties: bool) -> torch.Tensor:
    x = torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 3
    return (x * 2).round() / 2 if ties else x


@pytest.mark.parametrize("settings", FILTERS, ids=str)
@pytest.mark.parametrize("vocab", [2, 50, 1500])
@pytest.mark.parametrize("ties", [False, True])
def test_same_tokens_kept_and_same_draws_as_the_reference(settings: dict, vocab: int, ties: bool) -> None:
    for seed in range(3):
        params = SamplingParams(**settings, seed=seed)
        logits = random_logits(vocab, seed, ties=ties)
        expected = probabilities(logits.double().tolist(), params)
        if not params.greedy:
            ids, weights = kept(logits, params)
            found = torch.zeros(vocab, dtype=torch.float64)
            found[slice(None) if ids is None else ids] = weights / weights.sum()
            assert (found > 0).tolist() == [p > 0 for p in expected]
            tolerance = TOL["sampling probabilities", "float64"]
            torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **tolerance.bounds)
        for position in range(20):
            [token] = sample(logits[None], [Draw(params, seed, position)])
            assert token == choose(expected, uniform(seed, position))


@pytest.mark.parametrize("settings", [FILTERS[0], FILTERS[6], FILTERS[3]], ids=str)
def test_frequencies_follow_the_distribution(settings: dict) -> None:
    logits, draws = random_logits(12, 4, ties=False) / 2, 8_000
    params = SamplingParams(**settings)
    expected = probabilities(logits.double().tolist(), params)
    rows = logits[None].expand(draws, -1)
    tokens = sample(rows, [Draw(params, 11, position) for position in range(draws)])
    counts = torch.bincount(torch.tensor(tokens), minlength=12).tolist()
    support = [i for i, p in enumerate(expected) if p > 0]
    assert sum(counts[i] for i in support) == draws
    chi_square = sum((counts[i] - draws * expected[i]) ** 2 / (draws * expected[i]) for i in support)
    # Wilson-Hilferty: the cube root of chi-square per degree of freedom is nearly normal; 3.1 is 1 in 1000.
    freedom = len(support) - 1
    normal = ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert normal < 3.1, f"chi-square {chi_square:.1f} with {freedom} degrees of freedom"


def test_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    rows = torch.stack([random_logits(300, seed, ties=seed % 2 == 0) for seed in range(12)])
    draws = [Draw(SamplingParams(**FILTERS[i]), 7 * i, 100 + i) for i in range(12)]
    together = sample(rows, draws)
    assert together == [sample(rows[i : i + 1], [draws[i]])[0] for i in range(12)]
    order = random.Random(1).sample(range(12), 12)
    assert sample(rows[order], [draws[i] for i in order]) == [together[i] for i in order]


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.tensor([[1.0, 5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 0.0]])
    greedy, first = SamplingParams(temperature=0), SamplingParams(top_k=1)
    assert sample(logits, [Draw(greedy, 0, 0), Draw(first, 0, 0)]) == [1, 0]
    wide = torch.zeros(1, 50_000)
    wide[0, [17, 40_000]] = 1.0
    assert sample(wide, [Draw(greedy, 0, 0)]) == [17]


def test_extreme_logits_and_temperatures_stay_finite() -> None:
    logits = torch.tensor([[3e38, -3e38, 3e38, 0.0]])
    for temperature in (1e-300, 1e-9, 1.0, 1e30):
        [token] = sample(logits, [Draw(SamplingParams(temperature=temperature), 3, 1)])
        assert token in (0, 2) or temperature == 1e30


def test_uniform_is_pinned_and_even() -> None:
    found = [uniform(0, 0), uniform(1, 2), uniform(1, 2, 1), uniform(2**63 - 1, 10**6)]
    assert found == [0.13870941014555427, 0.9006109088931584, 0.17431900668305078, 0.24714042285149262]
    numbers = [uniform(5, position) for position in range(20_000)]
    assert all(0 <= x < 1 for x in numbers)
    assert abs(sum(numbers) / 20_000 - 0.5) < 0.01
    assert abs(sum(x * x for x in numbers) / 20_000 - 1 / 3) < 0.01
    assert len({uniform(seed, 0) for seed in range(1000)}) == 1000
    lagged = sum((a - 0.5) * (b - 0.5) for a, b in itertools.pairwise(numbers)) / 20_000
    assert abs(lagged) < 0.003


def test_non_finite_rows_are_found() -> None:
    logits = torch.zeros(4, 10)
    assert non_finite_rows(logits) == []
    logits[1, 3], logits[3, 0], logits[3, 1] = math.nan, math.inf, -math.inf
    assert non_finite_rows(logits) == [1, 3]
    assert non_finite_rows(torch.full((2, 4), 3e38)) == []  # finite, although the sum is not


def test_logprobs_are_of_the_untempered_model() -> None:
    logits = torch.stack([random_logits(40, 1, ties=True), random_logits(40, 2, ties=False)])
    first, second = token_logprobs(logits, [3, 5], [40, None])
    assert second is None
    assert first is not None
    exact = logits[0].double().log_softmax(0)
    assert first.logprob == pytest.approx(float(exact[3]), rel=1e-12)
    assert math.fsum(math.exp(value) for _, value in first.top) == pytest.approx(1.0, abs=1e-12)
    assert [i for i, _ in first.top] == sorted(range(40), key=lambda i: (-float(logits[0, i]), i))
    [chosen_only] = token_logprobs(logits[:1], [3], [0])
    assert chosen_only is not None
    assert chosen_only.top == ()
