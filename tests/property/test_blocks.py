"""The block allocator under random traffic, against the simplest possible books: a counter per block."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from indexshare.cache.blocks import BlockAllocator


def expected_blocks(free: list[int], n: int, near: int | None) -> list[int]:
    """What `allocate` promises: the run at `near`, then the lowest ids."""
    taken = []
    while near is not None and len(taken) < n and near in free:
        taken.append(near)
        near += 1
    rest = [block for block in free if block not in taken]
    return taken + rest[: n - len(taken)]


class Traffic(RuleBasedStateMachine):
    """Allocate, share and free at random; `owners` is what the allocator should believe."""

    @initialize(num_blocks=st.integers(1, 24))
    def start(self, num_blocks: int) -> None:
        self.blocks = BlockAllocator(num_blocks, 4)
        self.owners = dict.fromkeys(range(num_blocks), 0)

    def free_blocks(self) -> list[int]:
        return [block for block, count in self.owners.items() if count == 0]

    @rule(n=st.integers(0, 8), near=st.none() | st.integers(-2, 26))
    def allocate(self, n: int, near: int | None) -> None:
        free = self.free_blocks()
        if n > len(free):
            with pytest.raises(ValueError, match="cannot allocate"):
                self.blocks.allocate(n, near=near)
            return
        expected = expected_blocks(free, n, near)
        assert self.blocks.allocate(n, near=near) == expected
        for block in expected:
            self.owners[block] += 1

    @precondition(lambda self: any(self.owners.values()))
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from([b for b, count in self.owners.items() if count]))
        self.blocks.share(block)
        self.owners[block] += 1

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.owners)), max_size=6))
        if any(chosen.count(block) > self.owners[block] for block in chosen):
            with pytest.raises(ValueError, match="double free"):
                self.blocks.free(chosen)
            return
        self.blocks.free(chosen)
        for block in chosen:
            self.owners[block] -= 1

    @rule(n=st.integers(1, 6), start=st.integers(-2, 26), length=st.integers(0, 6))
    def find_run(self, n: int, start: int, length: int) -> None:
        free = set(self.free_blocks()) - set(range(start, start + length))
        runs = [b for b in sorted(free) if all(b + i in free for i in range(n))]
        assert self.blocks.find_run(n, [(start, start + length)]) == (runs[0] if runs else None)

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "blocks"):
            self.blocks.check_integrity()
            assert self.blocks.num_free == len(self.free_blocks())
            assert all(self.blocks.references(b) == count for b, count in self.owners.items())


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
