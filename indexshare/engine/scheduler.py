"""Continuous batching in plain Python: admit, chunk prefill, preempt, finish. No tensors, no torch.

The order of arrival is the order of service. Every step computes at most `token_budget` tokens: first one
token for each sequence that is generating, then pieces of prompts, oldest first. When the cache is full the
youngest sequence gives up its blocks and is computed again later; the oldest one never does, so something
always gets finished.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from indexshare.cache.blocks import BlockAllocator, BlockTable
from indexshare.cache.prefix import TOKEN_BYTES, PrefixCache
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
        least_piece: a prompt's last piece has at least so many tokens, where they can be moved into it: a few rows are
            computed in another way, to other last bits.
        prefixes: what is known of earlier sequences; nothing is taken over without it.
        restore: called with a sequence that is being admitted and how many of its tokens are known; returns how many
            are once it has filled further blocks of its table, and has told `prefixes` so.

    Raises:
        ValueError: a limit below 1.
    """

    def __init__(
        self,
        allocator: BlockAllocator,
        *,
        token_budget: int = PREFILL_CHUNK,
        max_running: int = 64,
        least_piece: int = 1,
        prefixes: PrefixCache | None = None,
        restore: Callable[[Request, int], int] | None = None,
    ) -> None:
        self.allocator = allocator
        self._least_piece = least_piece
        self.prefixes = prefixes
        self._restore = restore
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
                if request.computed == len(request.tokens) and self.prefixes is not None:
                    self.prefixes.forget(request.table.ids[(request.computed - 1) // self.allocator.block_size])
                past = min(request.computed, len(request.tokens) - 1)
                rows.append(Row(request, past, length, request.drafts))
                budget -= length
            at += 1
        for request in self._running:
            if request.state is RequestState.PREFILL and budget > 0:
                budget -= self._prefill(request, budget, rows)
        while self._waiting and budget > 0 and not preempted and self._suits(budget, rows) and self._admit():
            budget -= self._prefill(self._running[-1], budget, rows)
        return rows

    def commit(self, rows: list[Row]) -> None:
        """Record that the keys of these rows are in the cache."""
        for row in rows:
            request = row.request
            request.computed = row.past + row.own
            if self.prefixes is not None and request.state is RequestState.PREFILL:
                if not self._is_regular(self.prefixes, row):
                    request.epoch = -1
                self._remember(self.prefixes, request)
            if request.computed == len(request.tokens):
                request.state = RequestState.DECODE

    def _is_regular(self, prefixes: PrefixCache, row: Row) -> bool:
        """Whether a piece ends where it would in any other schedule, or lies where that changes no bit."""
        end = row.past + row.length
        if row.past >= prefixes.first:
            return True
        return row.past % self.token_budget == 0 and (end >= prefixes.first or end % self.token_budget == 0)

    @staticmethod
    def _remember(prefixes: PrefixCache, request: Request) -> None:
        """Let others begin with what was read; what decode steps computed differs from that in its last bits."""
        if request.epoch == prefixes.epoch:
            prefixes.insert(request.packed(), request.table.ids, request.computed - prefixes.late)

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
        """Check the books: blocks belong to running requests only, and nobody writes into one that has two owners."""
        self.allocator.check_integrity()
        if self.prefixes is not None:
            self.prefixes.check_integrity()
        owners = Counter(b for r in self._running for b in r.table)
        assert all(self.allocator.references(b) == n for b, n in owners.items()), "a block has other owners"
        assert len(owners) == self.allocator.num_blocks - self.allocator.num_free, "a block was lost"
        size = self.allocator.block_size
        written = [b for r in self._running for b in r.table.ids[r.computed // size :]]
        assert all(owners[b] == 1 for b in written), "two requests write into one block"
        assert all(not self.allocator.is_kept(b) for b in written), "a block that others may take over is written"
        assert all(len(r.table) == 0 and r.computed == 0 for r in self._waiting), "a waiting request holds blocks"
        numbers = [r.number for r in self.requests]
        assert numbers == sorted(numbers), "requests are out of order"

    def _prefill(self, request: Request, budget: int, rows: list[Row]) -> int:
        """Add the next piece of a prompt; its blocks were taken at admission."""
        length = min(request.pending, budget)
        if 0 < request.pending - length < self._least_piece < length:
            length -= self._least_piece
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

    def _suits(self, budget: int, rows: list[Row]) -> bool:
        """Whether the oldest waiting request can begin with a piece of the size that it would have in a step alone."""
        if self.prefixes is None or all(row.request.state is RequestState.DECODE for row in rows):
            return True
        return budget >= min(self.prefixes.first, len(self._waiting[0].tokens))

    def _admit(self) -> bool:
        """Move the oldest waiting request into the cache, if its whole prompt fits. False if it must wait."""
        if len(self._running) >= self.max_running:
            return False
        request = self._waiting[0]
        known = [] if self.prefixes is None else self.prefixes.find(request.packed())
        if self._is_being_read(request, len(known)):
            return False
        needed = self.allocator.blocks_for(len(request.tokens)) - len(known)
        idle = sum(self.allocator.references(block) == 0 for block in known)
        # One block to spare for each sequence that will grow; otherwise the newcomer would soon be thrown out
        # again.
        if needed + idle + len(self._running) > self.allocator.num_free:
            return False
        self._begin(request, known, needed)
        self._running.append(self._waiting.popleft())
        return True

    def _begin(self, request: Request, known: list[int], needed: int) -> None:
        """Give a request its blocks: `known` ones that it shares, and `needed` of its own."""
        for block in known:
            self.allocator.share(block)
        place = known[-1] + 1 if known else self._place(request)
        request.table = BlockTable([*known, *self.allocator.allocate(needed, near=place)])
        request.state = RequestState.PREFILL
        request.computed = len(known) * self.allocator.block_size
        request.epoch = -1 if self.prefixes is None else self.prefixes.epoch
        if self._restore is not None:
            try:
                request.computed = self._restore(request, request.computed)
            except BaseException:  # Ctrl+C, while files are read
                self._release(request)
                request.state = RequestState.WAITING
                raise
        if not request.stats.preemptions:
            request.stats.cached_tokens = request.computed

    def _is_being_read(self, request: Request, known: int) -> bool:
        """Whether a running request is about to read more of the same beginning than the `known` blocks."""
        if self.prefixes is None:
            return False
        own, size = request.packed(), TOKEN_BYTES * self.allocator.block_size
        for other in self._running:
            offers = other.state is RequestState.PREFILL and other.epoch == self.prefixes.epoch
            theirs = other.packed() if offers else b""
            at = known * size
            while at < min(len(own), len(theirs)) and own[at : at + size] == theirs[at : at + size]:
                at += size
            shared = self.prefixes.usable(min(at, len(own) - TOKEN_BYTES * self.prefixes.left) // TOKEN_BYTES)
            if shared > known * self.allocator.block_size and own[: known * size] == theirs[: known * size]:
                return True
        return False

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
        self.allocator.free(request.table.ids[::-1])  # of what is kept, the end of a sequence goes first
        request.table = BlockTable()
        request.computed = 0
