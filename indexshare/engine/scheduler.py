"""Continuous batching in plain Python: admit, chunk prefill, preempt, finish. No tensors, no torch.

The order of arrival is the order of service. Every step computes at most `token_budget` tokens: first one
token for each sequence that is generating, then pieces of prompts, oldest first. When the cache is full the
youngest sequence gives up its blocks and is computed again later; the oldest one never does, so something
always gets finished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from indexshare.cache.blocks import BlockAllocator, BlockTable
from indexshare.config.arguments import as_integer
from indexshare.engine.request import Request, RequestState

# Tokens of a step unless told otherwise: experts get enough rows each for fast products, and a step stays short.
PREFILL_CHUNK = 2048


@dataclass(frozen=True)
class Row:
    """One request's part of a step: its next `length` tokens, starting at position `past`; the last may be `drafts`."""

    request: Request
    past: int
    length: int
    drafts: Sequence[int] = ()

    @property
    def own(self) -> int:
        """Tokens of the row that the sequence holds: those before the drafts."""
        return self.length - len(self.drafts)

    @property
    def completes(self) -> bool:
        """Whether the next token can be drawn after this row."""
        return self.past + self.own == len(self.request.tokens)


class Scheduler:
    """Decides which tokens the next step computes.

    `schedule` allocates cache room and returns rows; `commit` says they were computed. When a step fails
    between the two, nothing is lost: the next `schedule` returns the same work.

    Args:
        allocator: the blocks of the cache.
        token_budget: most tokens in one step, at least 1.
        max_running: most sequences in the cache at a time, at least 1.

    Raises:
        ValueError: a limit below 1.
    """

    def __init__(self, allocator: BlockAllocator, *, token_budget: int = PREFILL_CHUNK, max_running: int = 64) -> None:
        self.allocator = allocator
        self.token_budget = as_integer("token_budget", token_budget, low=1)
        self.max_running = as_integer("max_running", max_running, low=1)
        # Both in order of arrival, and all running ones arrived before all waiting ones.
        self._running: list[Request] = []
        self._waiting: deque[Request] = deque()

    @property
    def requests(self) -> Iterator[Request]:
        """All unfinished requests in order of arrival."""
        yield from self._running
        yield from self._waiting

    @property
    def num_running(self) -> int:
        """Sequences that hold cache blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that hold none."""
        return len(self._waiting)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            ValueError: it could not run even if it had the whole cache.
        """
        needed = self.allocator.blocks_for(request.max_len)
        if needed > self.allocator.num_blocks:
            raise ValueError(
                f"a request of {request.max_len} tokens needs {needed} blocks of "
                f"{self.allocator.block_size}; the cache has {self.allocator.num_blocks}: make it larger"
            )
        request.state = RequestState.WAITING
        self._waiting.append(request)

    def schedule(self) -> list[Row]:
        """The rows of the next step, decoding ones first; empty when nothing is left to do."""
        budget = self.token_budget
        rows: list[Row] = []
        preempted = False
        at = 0
        while at < len(self._running) and budget > 0:  # preemption shortens the list from its end
            request = self._running[at]
            if request.state is RequestState.DECODE:
                length = 1 + len(request.drafts)
                if length > budget:
                    break  # the next step begins with it, or comes closer
                preempted |= self._make_room(request, length)
                if request.state is not RequestState.DECODE:
                    break  # it was the youngest and gave way itself
                # The last token again, should a step have been interrupted after its commit.
                past = min(request.computed, len(request.tokens) - 1)
                rows.append(Row(request, past, length, request.drafts))
                budget -= length
            at += 1
        for request in self._running:
            if request.state is RequestState.PREFILL and budget > 0:
                budget -= self._prefill(request, budget, rows)
        while self._waiting and budget > 0 and not preempted and self._admit():
            budget -= self._prefill(self._running[-1], budget, rows)
        return rows

    def commit(self, rows: list[Row]) -> None:
        """Record that the keys of these rows are in the cache."""
        for row in rows:
            request = row.request
            request.computed = row.past + row.own
            if request.computed == len(request.tokens):
                request.state = RequestState.DECODE

    def finish(self, request: Request, reason: str) -> None:
        """Take a request out and free its blocks, at any point of its life; finished ones are left alone."""
        if request.finished:
            return
        request.finish_reason = reason
        request.state = RequestState.FINISHED
        if request in self._running:
            self._running.remove(request)
            self._release(request)
        else:
            self._waiting.remove(request)

    def check_integrity(self) -> None:
        """Check the allocator's books and that every block in use belongs to exactly one running request."""
        self.allocator.check_integrity()
        owned = [b for r in self._running for b in r.table]
        assert len(set(owned)) == len(owned), "two requests own one block"
        assert len(owned) == self.allocator.num_blocks - self.allocator.num_free, "a block was lost"
        assert all(len(r.table) == 0 and r.computed == 0 for r in self._waiting), "a waiting request holds blocks"
        numbers = [r.number for r in self.requests]
        assert numbers == sorted(numbers), "requests are out of order"

    def _prefill(self, request: Request, budget: int, rows: list[Row]) -> int:
        """Add the next piece of a prompt; its blocks were taken at admission."""
        length = min(request.pending, budget)
        rows.append(Row(request, request.computed, length))
        return length

    def _make_room(self, request: Request, length: int) -> bool:
        """Get the blocks for `length` more tokens, preempting the youngest until there is one. True if any was."""
        preempted = False
        missing = self.allocator.blocks_for(request.computed + length) - len(request.table)
        while missing > 0 and self.allocator.num_free < missing:
            youngest = self._running[-1]
            self._preempt(youngest)
            preempted = True
            if youngest is request:
                return True
        if missing > 0:
            request.table.extend(self.allocator.allocate(missing, near=request.table.next_block))
        return preempted

    def _preempt(self, request: Request) -> None:
        """Give up the youngest sequence's blocks; it will compute prompt and output again."""
        assert request is self._running[-1]
        self._running.pop()
        self._release(request)
        request.state = RequestState.WAITING
        request.stats.preemptions += 1
        self._waiting.appendleft(request)

    def _admit(self) -> bool:
        """Move the oldest waiting request into the cache, if its whole prompt fits. False if it must wait."""
        if len(self._running) >= self.max_running:
            return False
        request = self._waiting[0]
        needed = self.allocator.blocks_for(len(request.tokens))
        # One block to spare for each sequence that will grow; otherwise the newcomer would soon be thrown out
        # again.
        if needed + len(self._running) > self.allocator.num_free:
            return False
        self._waiting.popleft()
        request.table = BlockTable(self.allocator.allocate(needed, near=self._place(request)))
        request.state = RequestState.PREFILL
        self._running.append(request)
        return True

    def _place(self, request: Request) -> int | None:
        """Where this sequence can grow to its full length as one run, out of the others' way if possible."""
        full = self.allocator.blocks_for(request.max_len)
        growing = []
        for other in self._running:
            start = other.table.next_block
            if start is not None:
                growing.append((start, start + self.allocator.blocks_for(other.max_len) - len(other.table)))
        place = self.allocator.find_run(full, growing)
        if place is None:
            place = self.allocator.find_run(self.allocator.blocks_for(len(request.tokens)))
        return place

    def _release(self, request: Request) -> None:
        self.allocator.free(request.table.ids)
        request.table = BlockTable()
        request.computed = 0
