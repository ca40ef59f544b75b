"""The block allocator and block tables: order, sharing, placement, errors."""

import pytest

from indexshare.cache.blocks import BlockAllocator, BlockTable


def test_lowest_ids_come_first_and_again_after_freeing() -> None:
    blocks = BlockAllocator(8, 64)
    assert blocks.allocate(3) == [0, 1, 2]
    assert blocks.allocate(2) == [3, 4]
    blocks.free([1, 3])
    assert blocks.allocate(3) == [1, 3, 5]
    blocks.check_integrity()


def test_near_continues_a_run_as_far_as_it_is_free() -> None:
    blocks = BlockAllocator(8, 1)
    assert blocks.allocate(2, near=4) == [4, 5]
    assert blocks.allocate(3, near=6) == [6, 7, 0]
    assert blocks.allocate(1, near=4) == [1]
    assert blocks.allocate(1, near=99) == [2]
    blocks.free([4, 6, 7])
    assert blocks.allocate(4) == [3, 4, 6, 7]
    blocks.check_integrity()


def test_find_run_keeps_clear_of_others() -> None:
    blocks = BlockAllocator(10, 1)
    blocks.allocate(2)
    assert blocks.find_run(3) == 2
    assert blocks.find_run(3, [(2, 5)]) == 5
    assert blocks.find_run(3, [(2, 5), (7, 99)]) is None
    assert blocks.find_run(9) is None
    assert blocks.find_run(2, [(-3, 4), (6, 6)]) == 4


def test_a_shared_block_is_free_when_every_owner_has_freed_it() -> None:
    blocks = BlockAllocator(2, 64)
    [block] = blocks.allocate(1)
    blocks.share(block)
    blocks.free([block])
    assert blocks.references(block) == 1
    assert blocks.num_free == 1
    blocks.free([block])
    assert blocks.num_free == 2
    blocks.check_integrity()


def test_mistakes_are_refused_and_change_nothing() -> None:
    blocks = BlockAllocator(3, 64)
    held = blocks.allocate(2)
    with pytest.raises(ValueError, match="cannot allocate 2 cache blocks: 1 of 3 are free"):
        blocks.allocate(2)
    with pytest.raises(ValueError, match="cannot allocate -1"):
        blocks.allocate(-1)
    with pytest.raises(ValueError, match="double free of block 2"):
        blocks.free([0, 2])
    with pytest.raises(ValueError, match="double free of block 0: it has 1 owners, 2"):
        blocks.free([0, 0])
    with pytest.raises(ValueError, match="block 3 does not exist: ids run from 0 to 2"):
        blocks.free([0, 3])
    with pytest.raises(ValueError, match="cannot share block 2"):
        blocks.share(2)
    with pytest.raises(ValueError, match="num_blocks=0"):
        BlockAllocator(0, 64)
    assert [blocks.references(b) for b in range(3)] == [1, 1, 0]
    blocks.free(held)
    blocks.check_integrity()


def test_blocks_for_rounds_up() -> None:
    blocks = BlockAllocator(1, 64)
    assert [blocks.blocks_for(n) for n in (0, 1, 64, 65, 128)] == [0, 1, 1, 2, 2]


def test_a_table_knows_whether_it_is_one_run() -> None:
    table = BlockTable()
    assert table.is_run
    assert table.next_block is None
    table.extend([4, 5])
    assert table.is_run
    assert table.next_block == 6
    table.extend([6])
    assert table.is_run
    table.extend([9, 10])
    assert not table.is_run
    assert list(table) == [4, 5, 6, 9, 10]
    assert len(table) == 5
