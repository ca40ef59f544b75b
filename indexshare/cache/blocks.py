"""Which blocks of the paged cache belong to whom: plain Python, no tensors.

A block is a fixed number of consecutive cache slots in every layer at once. Ids are handed out lowest first,
so a lone request owns one consecutive run and its keys can be read as a view instead of being gathered. A block may
be kept when its last owner is gone: it is free then, but handed out after all others, the longest unused first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice


class BlockAllocator:
    """Hands out block ids, counts the owners of each block and takes them back.

    Args:
        num_blocks: number of blocks, at least 1.
        block_size: cache slots (tokens) per block, at least 1.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"num_blocks={num_blocks}, block_size={block_size}: expected at least one block of one slot"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._references = [0] * num_blocks
        self._used = bytearray(num_blocks)  # 1 where a block has owners or is kept; searched in C by find_run
        self._kept = bytearray(num_blocks)
        self._idle: dict[int, None] = {}  # kept blocks without an owner, in the order in which they lost the last one
        self.on_drop: Callable[[int], None] | None = None  # told of each kept block that is handed out to somebody else
        # Lowest-first order. A block taken by `near` stays in the heap as a stale entry until it is popped,
        # and `_queued` keeps it from entering twice, so the heap never outgrows the pool.
        self._heap = list(range(num_blocks))
        self._queued = bytearray(b"\1" * num_blocks)
        self._num_free = num_blocks

    @property
    def num_free(self) -> int:
        """Blocks without an owner."""
        return self._num_free

    def blocks_for(self, tokens: int) -> int:
        """Blocks needed to hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def references(self, block: int) -> int:
        """Number of owners of `block`, 0 when it is free."""
        return self._references[self._checked(block)]

    def allocate(self, n: int, *, near: int | None = None) -> list[int]:
        """Take `n` free blocks, each with one owner.

        Args:
            n: number of blocks, 0 or more.
            near: take the blocks from this id upwards as far as they are free, and the rest lowest first. A
                hint: any integer is accepted.

        Raises:
            ValueError: fewer than `n` blocks are free (nothing is taken then), or `n` is negative.
        """
        if n < 0:
            raise ValueError(f"cannot allocate {n} blocks: expected 0 or more")
        if n > self._num_free:
            raise ValueError(
                f"cannot allocate {n} cache blocks: {self._num_free} of {self.num_blocks} are free; "
                "free some, or make the cache larger"
            )
        taken: list[int] = []
        if near is not None and near >= 0:
            while len(taken) < n and near < self.num_blocks and not self._used[near]:
                taken.append(self._take(near))
                near += 1
        while len(taken) < n and self._num_free > len(self._idle):
            block = heapq.heappop(self._heap)
            self._queued[block] = 0
            if not self._used[block]:
                taken.append(self._take(block))
        return taken + self._reclaim(n - len(taken))

    def find_run(self, n: int, keep_clear: Iterable[tuple[int, int]] = ()) -> int | None:
        """First block of the lowest run of `n` free blocks that meets none of the `keep_clear` ranges.

        Args:
            n: length of the run.
            keep_clear: half-open ranges (start, end) of ids that others will grow into.

        Returns:
            A block id for `allocate(near=...)`, or None when there is no such run.
        """
        used = bytearray(self._used)
        for start, end in keep_clear:
            start, end = max(start, 0), min(end, self.num_blocks)
            if start < end:
                used[start:end] = b"\1" * (end - start)
        found = used.find(bytes(n))
        return None if found < 0 else found

    def share(self, block: int) -> None:
        """Add an owner to a block that is in use or kept; each owner frees it once.

        Raises:
            ValueError: the block is free and not kept, or does not exist.
        """
        if self._references[self._checked(block)] == 0:
            if block not in self._idle:
                raise ValueError(f"cannot share block {block}: it is free, so its contents belong to nobody")
            del self._idle[block]
            self._num_free -= 1
        self._references[block] += 1

    def keep(self, block: int) -> None:
        """Keep the contents of a block in use when its last owner is gone, until `on_drop` or `drop`.

        Raises:
            ValueError: the block is free or does not exist.
        """
        if self._references[self._checked(block)] == 0:
            raise ValueError(f"cannot keep block {block}: it is free, so its contents belong to nobody")
        self._kept[block] = 1

    def is_kept(self, block: int) -> bool:
        """Whether the contents of a block are kept."""
        return bool(self._kept[self._checked(block)])

    def drop(self, block: int) -> None:
        """Keep a block's contents no longer; nothing happens to its owners, nor if it was not kept."""
        self._kept[self._checked(block)] = 0
        if block in self._idle:
            del self._idle[block]
            self._release(block)

    def free(self, blocks: Sequence[int]) -> None:
        """Remove one owner from each block; a block without owners can be handed out again.

        Of the kept ones among them, the first is handed out first.

        Raises:
            ValueError: a block is free already (double free) or does not exist; nothing is freed then.
        """
        removed: dict[int, int] = {}
        for block in blocks:
            removed[block] = removed.get(self._checked(block), 0) + 1
            if removed[block] > self._references[block]:
                raise ValueError(
                    f"double free of block {block}: it has {self._references[block]} owners, "
                    f"{removed[block]} were to be removed"
                )
        for block, owners in removed.items():
            self._references[block] -= owners
            if self._references[block] == 0:
                self._num_free += 1
                if self._kept[block]:
                    self._idle[block] = None
                else:
                    self._release(block)

    def check_integrity(self) -> None:
        """Check the books against each other; AssertionError when they disagree. O(num_blocks), for tests."""
        free = [b for b in range(self.num_blocks) if self._references[b] == 0]
        assert min(self._references) >= 0, "a block has a negative number of owners"
        assert len(free) == self._num_free, f"{len(free)} blocks are free, {self._num_free} are counted"
        assert all(self._kept[b] and self._references[b] == 0 for b in self._idle), "a block is idle that is not kept"
        assert all(b in self._idle for b in free if self._kept[b]), "a kept block cannot be handed out again"
        assert all(bool(self._used[b]) == (self._references[b] > 0 or b in self._idle) for b in range(self.num_blocks))
        assert sorted(self._heap) == [b for b in range(self.num_blocks) if self._queued[b]], "heap and flags differ"
        assert all(self._queued[b] for b in free if b not in self._idle), "a free block cannot be found again"

    def _reclaim(self, n: int) -> list[int]:
        """Take the `n` kept blocks that are longest unused, in order of their ids: often one run."""
        oldest = sorted(islice(self._idle, n))
        for block in oldest:
            del self._idle[block]
            self._kept[block] = 0
            self._take(block)
        if self.on_drop is not None:
            for block in oldest:
                self.on_drop(block)
        return oldest

    def _release(self, block: int) -> None:
        """Put a block without owners where it is found again."""
        self._used[block] = 0
        if not self._queued[block]:
            self._queued[block] = 1
            heapq.heappush(self._heap, block)

    def _take(self, block: int) -> int:
        self._references[block] = 1
        self._used[block] = 1
        self._num_free -= 1
        return block

    def _checked(self, block: int) -> int:
        if not 0 <= block < self.num_blocks:
            raise ValueError(f"block {block} does not exist: ids run from 0 to {self.num_blocks - 1}")
        return block


class BlockTable:
    """The blocks of one sequence in order; it only grows, and knows without a scan whether it is one run.

    A sequence that loses its blocks gets a new table: what is remembered about a table (its tensor in
    `cache.paged`) then never goes stale.
    """

    __slots__ = ("__weakref__", "_ids", "_is_run")

    def __init__(self, blocks: Iterable[int] = ()) -> None:
        self._ids: list[int] = []
        self._is_run = True
        self.extend(blocks)

    def extend(self, blocks: Iterable[int]) -> None:
        """Append `blocks` in order."""
        for block in blocks:
            if self._ids and block != self._ids[-1] + 1:
                self._is_run = False
            self._ids.append(block)

    @property
    def ids(self) -> Sequence[int]:
        """Block ids in order, to be read only."""
        return self._ids

    @property
    def is_run(self) -> bool:
        """Whether the ids are consecutive (true for zero or one block)."""
        return self._is_run

    @property
    def next_block(self) -> int | None:
        """The id that would continue the run, None for an empty table."""
        return self._ids[-1] + 1 if self._ids else None

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)
