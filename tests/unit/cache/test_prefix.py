"""Known beginnings of sequences: found by their tokens, shared, given up when room is needed, never mixed up."""

import pytest

from indexshare.cache.blocks import BlockAllocator, BlockTable
from indexshare.cache.prefix import PrefixCache, pack_tokens

SIZE = 4


def store(num_blocks: int = 12, **settings: int) -> tuple[BlockAllocator, PrefixCache]:
    blocks = BlockAllocator(num_blocks, SIZE)
    return blocks, PrefixCache(blocks, **settings)


def keep(blocks: BlockAllocator, known: PrefixCache, tokens: list[int]) -> list[int]:
    """Compute a sequence from nothing and end it."""
    table = blocks.allocate(blocks.blocks_for(len(tokens)))
    known.insert(pack_tokens(tokens), table, len(tokens))
    blocks.free(table[::-1])
    known.check_integrity()
    blocks.check_integrity()
    return table


def test_the_longest_beginning_is_found_but_never_the_last_token() -> None:
    blocks, known = store()
    table = keep(blocks, known, list(range(12)))
    find = lambda tokens: known.find(pack_tokens(tokens))  # noqa: E731
    assert find([*range(12), 99]) == table
    assert find(list(range(12))) == table[:2], "one token is left to compute"
    assert find([*range(9), 7, 7, 7, 7]) == table[:2]
    assert find([*range(4), 4]) == table[:1]
    assert find([1, *range(1, 13)]) == []
    assert known.num_blocks == 3 and blocks.num_free == 12


def test_what_may_be_taken_over_has_steps_and_a_least_length() -> None:
    blocks, known = store(first=9, step=8, left=3)
    table = keep(blocks, known, list(range(40)))
    find = lambda n: len(known.find(pack_tokens(range(n))))  # noqa: E731
    assert [find(n) for n in (8, 11, 18, 19, 26, 27, 42, 43)] == [0, 0, 0, 4, 4, 6, 8, 10]
    assert list(known.boundaries(0, 43)) == [16, 24, 32, 40] and list(known.boundaries(24, 42)) == [32]
    assert len(table) == 10
    keep(blocks, known, [5] * 8)
    assert known.num_blocks == 10, "below the least length nothing is worth keeping"
    for wrong in ({"step": 6}, {"step": 0}, {"left": 0}):
        with pytest.raises(ValueError, match="expected a multiple of the block size 4, and at least 1"):
            store(**wrong)


def test_a_shared_block_has_an_owner_for_each_sequence_and_is_kept_after_the_last() -> None:
    blocks, known = store()
    table = keep(blocks, known, list(range(8)))
    for _ in range(2):
        for block in known.find(pack_tokens(range(9))):
            blocks.share(block)
    assert [blocks.references(b) for b in table] == [2, 2] and blocks.num_free == 10
    blocks.free(table)
    blocks.free(table)
    assert known.find(pack_tokens(range(9))) == table and blocks.num_free == 12
    with pytest.raises(ValueError, match="it is free, so its contents belong to nobody"):
        blocks.share(11)
    with pytest.raises(ValueError, match="cannot keep block 11"):
        blocks.keep(11)


def test_room_is_made_by_what_was_longest_unused_and_ends_go_first() -> None:
    blocks, known = store(6)
    first, second = keep(blocks, known, [1] * 8), keep(blocks, known, [2] * 12)
    assert blocks.allocate(1) == [5], "a block that nobody wants comes first"
    assert known.find(pack_tokens([1] * 9)) == first
    assert blocks.allocate(1) == [first[1]]
    assert known.find(pack_tokens([1] * 9)) == first[:1] and known.find(pack_tokens([2] * 13)) == second
    for block in known.find(pack_tokens([1] * 9)):  # in use: it is not given away
        blocks.share(block)
    assert blocks.allocate(3) == sorted(second)
    assert known.num_blocks == 1
    known.check_integrity()
    with pytest.raises(ValueError, match="0 of 6 are free"):
        blocks.allocate(1)


def test_a_run_is_looked_for_where_nothing_is_kept() -> None:
    blocks, known = store(8)
    keep(blocks, known, [1] * 12)
    assert blocks.find_run(5) == 3 and blocks.find_run(6) is None
    assert blocks.allocate(2, near=2) == [3, 4], "a kept block is not taken for being near"
    assert BlockTable(blocks.allocate(6)).ids == [5, 6, 7, 0, 1, 2]


def test_the_same_tokens_in_other_blocks_take_the_place_of_the_old_ones() -> None:
    blocks, known = store()
    old = keep(blocks, known, list(range(12)))
    new = blocks.allocate(2)
    known.insert(pack_tokens(range(8)), new, 8)
    assert known.find(pack_tokens(range(13))) == [*new, old[2]]
    assert not blocks.is_kept(old[0])
    known.check_integrity()
    blocks.free(new)
    assert blocks.num_free == 12


def test_a_lost_beginning_takes_its_continuations_with_it() -> None:
    blocks, known = store()
    table = keep(blocks, known, list(range(12)))
    other = keep(blocks, known, [*range(4), *range(20, 28)])
    known.forget(known.find(pack_tokens(range(5)))[0])
    assert known.num_blocks == 0 and blocks.num_free == 12
    assert known.find(pack_tokens(range(13))) == []
    assert not any(blocks.is_kept(b) for b in (*table, *other))
    known.check_integrity()


def test_forgetting_everything() -> None:
    blocks, known = store()
    keep(blocks, known, list(range(12)))
    used = blocks.allocate(1)
    known.insert(pack_tokens([5] * 4), used, 4)
    known.clear()
    assert (known.num_blocks, known.epoch, blocks.num_free) == (0, 1, 11)
    known.check_integrity()
    blocks.free(used)
    assert blocks.allocate(12) == list(range(12))


def test_a_planted_wrong_block_is_caught() -> None:
    blocks, known = store()
    table, other = keep(blocks, known, list(range(12))), keep(blocks, known, [7] * 8)
    known.chain(pack_tokens(range(12)), 12)[1].block = other[1]
    with pytest.raises(AssertionError):
        known.check_integrity()
    assert known.find(pack_tokens(range(13))) == table[:1]
    assert known.find(pack_tokens([7] * 9)) == other
    with pytest.raises(AssertionError, match="holds the tokens of two sequences"):
        known.insert(pack_tokens([9] * 4), [other[0]], 4)


class Colliding(bytes):
    """Every hash of these is the same."""

    def __hash__(self) -> int:
        return 1

    def __getitem__(self, part):  # type: ignore[no-untyped-def]
        return Colliding(super().__getitem__(part))


def test_a_planted_hash_collision_is_caught() -> None:
    blocks, known = store()
    tables = []
    for first in range(4):
        packed = Colliding(pack_tokens([first, 1, 2, 3, first, 5, 6, 7]))
        tables.append(blocks.allocate(2))
        known.insert(packed, tables[-1], 8)
    for first, table in enumerate(tables):
        assert known.find(Colliding(pack_tokens([first, 1, 2, 3, first, 5, 6, 7, 8]))) == table
    assert known.find(Colliding(pack_tokens([4, 1, 2, 3, 4]))) == []
