"""The scheduler under any arrivals, early ends and aborts: no starvation, no lost block, no overdraft."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from indexshare.cache.blocks import BlockAllocator
from indexshare.engine.params import SamplingParams
from indexshare.engine.request import Request, RequestState
from indexshare.engine.scheduler import Row, Scheduler

EOS = 3


@dataclass(frozen=True)
class Arrival:
    """One request: when it comes, its size, after how many tokens it ends by itself, when it is aborted."""

    step: int
    prompt: int
    max_tokens: int
    ends_after: int
    aborted_at: int | None


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        step=st.integers(0, 12),
        prompt=st.integers(1, 30),
        max_tokens=st.integers(1, 12),
        ends_after=st.integers(1, 15),
        aborted_at=st.none() | st.integers(0, 30),
    ),
    min_size=1,
    max_size=10,
)


def check_step(scheduler: Scheduler, rows: list[Row]) -> None:
    """What must hold for every step."""
    scheduler.check_integrity()
    unfinished = list(scheduler.requests)
    assert sum(row.length for row in rows) <= scheduler.token_budget
    assert all(row.length >= 1 for row in rows)
    assert len({row.request.number for row in rows}) == len(rows)
    assert scheduler.num_running <= scheduler.max_running
    if unfinished:
        assert rows, "work is left, but none was scheduled"
        assert rows[0].request is unfinished[0] or any(r.request is unfinished[0] for r in rows), "starved"
    decoding = [row.request.state is RequestState.DECODE for row in rows]
    assert decoding == sorted(decoding, reverse=True), "decoding rows go first"
    for row in rows:
        assert row.past == row.request.computed
        assert row.past + row.length <= len(row.request.tokens)
        assert len(row.request.table) * scheduler.allocator.block_size >= row.past + row.length


@settings(max_examples=150, deadline=None)
@given(
    arrivals=ARRIVALS,
    num_blocks=st.integers(1, 14),
    block_size=st.integers(1, 5),
    token_budget=st.integers(1, 40),
    max_running=st.integers(1, 6),
)
def test_every_request_finishes_or_is_refused(
    arrivals: list[Arrival], num_blocks: int, block_size: int, token_budget: int, max_running: int
) -> None:
    scheduler = Scheduler(BlockAllocator(num_blocks, block_size), token_budget=token_budget, max_running=max_running)
    accepted: dict[Request, Arrival] = {}
    coming = sorted(arrivals, key=lambda a: a.step)
    step = 0
    while coming or any(not r.finished for r in accepted):
        while coming and coming[0].step <= step:
            arrival = coming.pop(0)
            params = SamplingParams(max_tokens=arrival.max_tokens)
            request = Request([1] * arrival.prompt, params, eos_ids=frozenset({EOS}))
            fits = arrival.prompt + arrival.max_tokens - 1 <= num_blocks * block_size
            try:
                scheduler.add(request)
                assert fits
                accepted[request] = arrival
            except ValueError:
                assert not fits
        for request, arrival in accepted.items():
            if arrival.aborted_at == step:
                scheduler.finish(request, "abort")
        rows = scheduler.schedule()
        check_step(scheduler, rows)
        ending = [row.request for row in rows if row.completes]
        scheduler.commit(rows)
        for request in ending:
            request.append(EOS if request.num_outputs + 1 == accepted[request].ends_after else 1, 0.0)
            if request.finish_reason:
                scheduler.finish(request, request.finish_reason)
        step += 1
        assert step < 20_000, "no end in sight"
    assert scheduler.allocator.num_free == num_blocks
    for request, arrival in accepted.items():
        if request.finish_reason != "abort":
            assert request.num_outputs == min(arrival.max_tokens, arrival.ends_after)
            assert request.finish_reason == ("stop" if arrival.ends_after <= arrival.max_tokens else "length")
