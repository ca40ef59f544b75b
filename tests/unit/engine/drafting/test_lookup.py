"""Lookups: the longest earlier suffix by brute force, incremental as text grows, and what follows it."""

import random

import pytest

from indexshare.engine.drafting.acceptance import Proposal
from indexshare.engine.drafting.base import Wish
from indexshare.engine.drafting.lookup import LEAST, LONGEST, LookupDrafter, LookupIndex, continued
from indexshare.engine.params import SamplingParams
from indexshare.engine.request import Request
from indexshare.engine.sampler import Draw


def brute_force(tokens: list[int], least: int) -> tuple[int, int]:
    """Longest suffix that ends earlier too, the latest of equally long ones."""
    best = (0, 0)
    for end in range(1, len(tokens)):
        length = 0
        while length < min(end, LONGEST) and tokens[end - 1 - length] == tokens[-1 - length]:
            length += 1
        if length >= max(least, best[0]):
            best = (length, end)
    return best


@pytest.mark.parametrize("vocab", [1, 2, 5])
@pytest.mark.parametrize("least", [1, 2, 3])
def test_the_longest_suffix_as_text_grows(vocab: int, least: int) -> None:
    rng = random.Random(vocab * 10 + least)
    tokens: list[int] = []
    index = LookupIndex(least)
    while len(tokens) < 100:  # no more places than are compared
        tokens += [rng.randrange(vocab) for _ in range(rng.randint(1, 4))]
        assert index.longest(tokens) == brute_force(tokens, least)
    assert LookupIndex(least).longest(tokens) == index.longest(tokens)


def test_a_new_text_has_nothing_to_look_up() -> None:
    index = LookupIndex()
    assert index.longest([]) == (0, 0)
    assert index.longest([5]) == (0, 0)
    assert index.longest(list(range(50))) == (0, 0)


def test_only_the_latest_places_are_compared() -> None:
    text = [1, 2, 3, 9, 9] + [7, 2, 3, 9] * 1000 + [1, 2, 3]
    index = LookupIndex(2)
    length, follows = index.longest(text)
    assert length == 2  # the place with 1 before it is too long ago
    assert text[follows - 2 : follows] == [2, 3]


@pytest.mark.parametrize(
    ("tokens", "follows", "count", "expected"),
    [
        ([1, 2, 3, 1, 2], 2, 2, [3, 1]),
        ([1, 2, 3, 1, 2], 2, 7, [3, 1, 2, 3, 1, 2, 3]),
        ([4, 4, 4], 2, 3, [4, 4, 4]),
        ([1, 2, 1, 2], 2, 5, [1, 2, 1, 2, 1]),
    ],
)
def test_what_follows_goes_on_with_itself(tokens: list[int], follows: int, count: int, expected: list[int]) -> None:
    assert continued(tokens, follows, count) == expected


def wish(request: Request, most: int) -> Wish:
    return Wish(request, most, lambda tokens: Draw(request.params, 0, len(request.tokens) + len(tokens)))


def test_proposals_of_several_requests_do_not_mix() -> None:
    drafter, params = LookupDrafter(), SamplingParams()
    assert LEAST == 3
    one, other = Request([1, 2, 3, 4, 5, 1, 2, 3], params), Request([1, 2, 3, 8, 1, 2, 3], params)
    assert drafter.propose([wish(one, 2), wish(other, 3), wish(Request([7], params), 4)]) == [
        Proposal([4, 5], None, "lookup"),
        Proposal([8, 1, 2], None, "lookup"),
        Proposal([], None, "lookup"),
    ]
    one.tokens += [4, 6]
    assert drafter.propose([wish(one, 2)]) == [Proposal([], None, "lookup")]
    one.tokens += [1, 2, 3]
    assert drafter.propose([wish(one, 9)])[0].tokens[:2] == [4, 6]
