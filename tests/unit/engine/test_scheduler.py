"""The scheduler's decisions on small examples: order, chunks, placement, preemption, errors."""

import pytest

from indexshare.cache.blocks import BlockAllocator
from indexshare.engine.params import SamplingParams
from indexshare.engine.request import Request, RequestState
from indexshare.engine.scheduler import Row, Scheduler


def make(num_blocks: int = 16, block_size: int = 4, **settings: int) -> Scheduler:
    return Scheduler(BlockAllocator(num_blocks, block_size), **settings)


def request(length: int, max_tokens: int = 8) -> Request:
    return Request([1] * length, SamplingParams(max_tokens=max_tokens))


def shape(rows: list[Row], requests: list[Request]) -> list[tuple[int, int, int]]:
    return [(requests.index(row.request), row.past, row.length) for row in rows]


def advance(scheduler: Scheduler, rows: list[Row]) -> None:
    """Commit a step and let every sequence that is complete generate a token."""
    ending = [row.request for row in rows if row.completes]
    scheduler.commit(rows)
    for done in ending:
        done.append(7, 0.0)
        if done.finish_reason:
            scheduler.finish(done, done.finish_reason)
    scheduler.check_integrity()


def test_prompts_are_cut_to_the_budget_and_decoding_goes_first() -> None:
    scheduler, requests = make(token_budget=10), [request(6), request(12), request(3)]
    for r in requests:
        scheduler.add(r)
    steps = []
    for _ in range(4):
        rows = scheduler.schedule()
        steps.append(shape(rows, requests))
        advance(scheduler, rows)
    assert steps == [
        [(0, 0, 6), (1, 0, 4)],
        [(0, 6, 1), (1, 4, 8), (2, 0, 1)],
        [(0, 7, 1), (1, 12, 1), (2, 1, 2)],
        [(0, 8, 1), (1, 13, 1), (2, 3, 1)],
    ]


def test_an_uncommitted_step_is_offered_again() -> None:
    scheduler, requests = make(token_budget=8), [request(5), request(9)]
    for r in requests:
        scheduler.add(r)
    first = shape(scheduler.schedule(), requests)
    assert shape(scheduler.schedule(), requests) == first
    scheduler.check_integrity()


def test_a_step_interrupted_after_its_commit_draws_again() -> None:
    scheduler, requests = make(), [request(5)]
    scheduler.add(requests[0])
    scheduler.commit(scheduler.schedule())  # no token was appended
    rows = scheduler.schedule()
    assert shape(rows, requests) == [(0, 4, 1)]
    assert rows[0].completes
    advance(scheduler, rows)
    assert shape(scheduler.schedule(), requests) == [(0, 5, 1)]


def test_each_sequence_gets_room_to_grow_as_one_run() -> None:
    scheduler, requests = make(num_blocks=64), [request(5, 20), request(9, 30), request(3, 10)]
    for r in requests:
        scheduler.add(r)
    while scheduler.num_waiting or scheduler.num_running:
        rows = scheduler.schedule()
        assert all(row.request.table.is_run for row in rows)
        advance(scheduler, rows)


def test_the_youngest_gives_way_and_comes_back_whole() -> None:
    scheduler, requests = make(num_blocks=6, block_size=2), [request(4, 8), request(4, 8)]
    for r in requests:
        scheduler.add(r)
    most_running = 0
    for _ in range(40):
        rows = scheduler.schedule()
        if not rows:
            break
        most_running = max(most_running, scheduler.num_running)
        advance(scheduler, rows)
    assert most_running == 2
    assert requests[0].stats.preemptions == 0
    assert requests[1].stats.preemptions == 1
    assert [r.num_outputs for r in requests] == [8, 8]
    assert scheduler.allocator.num_free == 6


def test_no_more_run_than_allowed() -> None:
    scheduler, requests = make(max_running=2), [request(2, 2) for _ in range(5)]
    for r in requests:
        scheduler.add(r)
    while rows := scheduler.schedule():
        assert scheduler.num_running <= 2
        advance(scheduler, rows)
    assert all(r.num_outputs == 2 for r in requests)


def test_requests_can_be_finished_at_any_point() -> None:
    scheduler, requests = make(token_budget=4), [request(6), request(6), request(2)]
    for r in requests:
        scheduler.add(r)
    advance(scheduler, scheduler.schedule())
    states = [r.state for r in requests]
    assert states == [RequestState.PREFILL, RequestState.WAITING, RequestState.WAITING]
    scheduler.finish(requests[1], "abort")
    scheduler.finish(requests[0], "abort")
    scheduler.finish(requests[0], "stop")
    assert requests[0].finish_reason == "abort"
    scheduler.check_integrity()
    assert list(scheduler.requests) == [requests[2]]
    assert scheduler.allocator.num_free == 16


def test_what_can_never_fit_is_refused() -> None:
    scheduler = make(num_blocks=4, block_size=4)
    scheduler.add(request(9, 8))
    with pytest.raises(ValueError, match="a request of 17 tokens needs 5 blocks of 4; the cache has 4"):
        scheduler.add(request(10, 8))


@pytest.mark.parametrize("settings", [{"token_budget": 0}, {"max_running": -1}, {"token_budget": True}])
def test_bad_limits_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is .*; expected an integer, 1 or more"):
        make(**settings)
