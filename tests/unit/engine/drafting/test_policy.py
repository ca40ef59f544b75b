"""How many drafts pay: the costs of rows from timings, acceptance per request, and the number that follows."""

import pytest

from indexshare.engine.drafting.policy import Fixed, Measured, RowCosts
from indexshare.engine.params import SamplingParams
from indexshare.engine.request import Request


def test_costs_of_rows_are_a_line_through_the_timings() -> None:
    costs = RowCosts()
    for n in range(200):
        rows = 1 + n % 5
        costs.add(rows, 0.002 + 0.0005 * rows)
    base, row = costs.line
    assert (base, row) == pytest.approx((0.002, 0.0005), rel=0.1)


def test_a_step_that_was_held_up_counts_little() -> None:
    costs = RowCosts()
    for n in range(100):
        costs.add(1 + n % 3, 0.001 * (2 + n % 3))
    before = costs.line
    costs.add(1, 5.0)
    assert costs.line[0] < 2 * before[0]


def test_without_timings_of_several_rows_a_row_costs_the_guess() -> None:
    costs = RowCosts()
    for _ in range(50):
        costs.add(1, 0.01)
    base, row = costs.line
    assert (base, row) == pytest.approx((0.006, 0.004))


def told(policy: Measured, request: Request, accepted: int, rounds: int) -> int:
    for _ in range(rounds):
        policy.drafted(request, "lookup", 4, accepted)
    return policy.count(request, "lookup", 1)


def test_the_number_follows_acceptance() -> None:
    request = Request([1, 2, 3], SamplingParams())
    counts = []
    for accepted in (0, 1, 2, 3, 4):
        policy = Measured()
        for n in range(40):
            policy.timed(1 + n % 4, 0.004 + 0.001 * (1 + n % 4))
        counts.append(told(policy, request, accepted, 40))
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == policy.most


def test_expensive_rows_and_full_batches_draft_less() -> None:
    request = Request([1, 2, 3], SamplingParams())
    policy = Measured()
    for n in range(40):
        policy.timed(1 + n % 4, 0.004 + 0.001 * (1 + n % 4))
    told(policy, request, 2, 20)
    alone, beside = policy.count(request, "lookup", 1), policy.count(request, "lookup", 32)
    assert alone > beside
    policy.timed_draft("lookup", 1, 0.1)  # slower than a step, but the first time counts for nothing
    assert policy.count(request, "lookup", 1) == alone
    policy.timed_draft("lookup", 1, 0.1)
    assert policy.count(request, "lookup", 1) == 0


def test_where_drafting_stopped_it_is_tried_again_now_and_then() -> None:
    request = Request([1, 2, 3], SamplingParams())
    policy = Measured()
    for n in range(40):
        policy.timed(1 + n % 4, 0.002 * (1 + n % 4))
    assert told(policy, request, 0, 20) == 0
    tried = []
    for _ in range(200):
        request.tokens.append(7)
        if count := policy.count(request, "lookup", 1):
            tried.append(count)
            policy.drafted(request, "lookup", count, 0)
    assert tried == [1, 1, 1]


def test_a_fixed_number_is_fixed() -> None:
    request = Request([1], SamplingParams())
    assert Fixed(3).count(request, "mtp", 7) == 3
