"""The block store under random traffic: no leak, no wrong block, owners exact. What a block holds is written down."""

import random

import pytest

from indexshare.cache.blocks import BlockAllocator
from indexshare.cache.prefix import PrefixCache, pack_tokens

SIZE = 3
ALPHABET = 2  # tokens, so that beginnings meet


class Traffic:
    """Sequences come, grow, share and end. `rows` is what every block holds, as its last writer left it."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.blocks = BlockAllocator(self.rng.randrange(2, 24), SIZE)
        step = SIZE * self.rng.choice([1, 1, 2])
        self.known = PrefixCache(self.blocks, first=self.rng.choice([1, 5]), step=step, left=self.rng.choice([1, 2]))
        self.texts: list[list[int]] = [[] for _ in range(6)]
        self.rows: dict[int, tuple[int, ...]] = {}
        self.running: list[tuple[list[int], list[int]]] = []

    def begin(self) -> None:
        earlier = self.rng.choice(self.texts) if self.rng.random() < 0.6 else []
        tokens = earlier[: self.rng.randrange(len(earlier) + 1)]
        tokens = tokens + [self.rng.randrange(ALPHABET) for _ in range(self.rng.randrange(1, 5 * SIZE))]
        self.texts[self.rng.randrange(len(self.texts))] = tokens[: 6 * SIZE]
        found = self.known.find(pack_tokens(tokens))
        for i, block in enumerate(found):
            assert self.rows[block] == tuple(tokens[: (i + 1) * SIZE]), "a wrong block"
        needed = self.blocks.blocks_for(len(tokens)) - len(found)
        idle = sum(self.blocks.references(block) == 0 for block in found)
        if needed + idle > self.blocks.num_free:
            return
        assert len(found) * SIZE < len(tokens)
        for block in found:
            self.blocks.share(block)
        table = [*found, *self.blocks.allocate(needed, near=self.rng.choice([None, found[-1] + 1 if found else 0]))]
        self.running.append((tokens, table))
        self.write(tokens, table, len(found))
        if self.rng.random() < 0.9:
            self.known.insert(pack_tokens(tokens), table, self.rng.randrange(len(tokens) + 1))

    def write(self, tokens: list[int], table: list[int], first: int) -> None:
        for i in range(first, len(table)):
            assert self.blocks.references(table[i]) == 1 and not self.blocks.is_kept(table[i]), "written while shared"
            self.rows[table[i]] = tuple(tokens[: (i + 1) * SIZE])

    def grow(self) -> None:
        if self.running and self.blocks.num_free:
            tokens, table = self.rng.choice(self.running)
            tokens += [self.rng.randrange(ALPHABET)] * (len(table) * SIZE + 1 - len(tokens))
            table += self.blocks.allocate(1, near=table[-1] + 1)
            self.write(tokens, table, len(table) - 1)

    def end(self) -> None:
        if self.running:
            _, table = self.running.pop(self.rng.randrange(len(self.running)))
            self.blocks.free(table[::-1])

    def forget(self) -> None:
        if self.rng.random() < 0.05:
            self.known.clear()
        else:
            self.known.forget(self.rng.randrange(self.blocks.num_blocks))

    def check(self) -> None:
        self.blocks.check_integrity()
        self.known.check_integrity()
        for block in range(self.blocks.num_blocks):
            assert self.blocks.references(block) == sum(block in table for _, table in self.running), "a wrong count"


def run(operations: int, seed: int) -> int:
    """So many operations in stores of different sizes; returns how many blocks were shared."""
    shared = done = 0
    while done < operations:
        traffic = Traffic(seed + done)
        for _ in range(min(500, operations - done)):
            done += 1
            kind = traffic.rng.choices(("begin", "grow", "end", "forget"), (10, 6, 9, 1))[0]
            getattr(traffic, kind)()
            traffic.check()
            shared += any(traffic.blocks.references(b) > 1 for b in range(traffic.blocks.num_blocks))
        while traffic.running:
            traffic.end()
        assert traffic.blocks.num_free == traffic.blocks.num_blocks, "a block was lost"
        assert sorted(traffic.blocks.allocate(traffic.blocks.num_blocks)) == list(range(traffic.blocks.num_blocks))
        assert traffic.known.num_blocks == 0
    return shared


def test_random_operations() -> None:
    assert run(3_000, 0) > 100


@pytest.mark.slow
def test_a_hundred_thousand_random_operations() -> None:
    assert run(100_000, 1) > 3_000
