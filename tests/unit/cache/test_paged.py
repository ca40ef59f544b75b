"""The paged cache: exact sizes, reads that equal what was written, views where blocks are one run."""

import pytest
import torch

from indexshare.cache.blocks import BlockTable
from indexshare.cache.paged import PagedCache
from indexshare.cache.view import InFlightView
from indexshare.config import preset
from indexshare.config.layers import INDEX_KEYS
from indexshare.config.mla import LATENTS
from indexshare.planner.memory import cache_bytes_per_token

CONFIG = preset("tiny")
DRAFT = CONFIG.num_hidden_layers


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_equal_the_planner_exactly(dtype: torch.dtype, draft: bool) -> None:
    cache = PagedCache(CONFIG, 5, 16, dtype, draft=draft)
    assert cache.num_tokens == 80
    assert cache.nbytes == 80 * cache_bytes_per_token(CONFIG, dtype.itemsize, draft=draft)


def test_only_full_layers_and_the_draft_layer_have_index_keys() -> None:
    cache, with_draft = PagedCache(CONFIG, 2), PagedCache(CONFIG, 2, draft=True)
    full = set(CONFIG.share_plan.full_layers)
    for layer in range(DRAFT):
        assert cache.pool(layer, LATENTS).stored.shape == (128, CONFIG.latent_dim)
        if layer in full:
            assert cache.pool(layer, INDEX_KEYS).stored.shape == (128, CONFIG.index_head_dim)
        else:
            with pytest.raises(ValueError, match=f"layer {layer} keeps no index keys"):
                cache.pool(layer, INDEX_KEYS)
    with pytest.raises(ValueError, match=f"layer {DRAFT} keeps no latents"):
        cache.pool(DRAFT, LATENTS)
    assert with_draft.pool(DRAFT, LATENTS).stored.shape == (128, CONFIG.latent_dim)
    assert with_draft.pool(DRAFT, INDEX_KEYS).stored.shape == (128, CONFIG.index_head_dim)


@pytest.mark.parametrize("tables", [[[2, 3, 4], [0, 1, 5]], [[4, 0, 2], [1, 3]], [[0, 1, 2], [3, 4, 5]]])
def test_two_steps_read_back_what_was_written(tables: list[list[int]], poisoned_memory: None) -> None:
    cache = PagedCache(CONFIG, 6, 4)
    kept = [BlockTable(t) for t in tables]
    past, rows = [0, 0], [[], []]
    for lengths in ([7, 5], [1, 1], [2, 1]):
        view = cache.view(kept, list(zip(past, lengths, strict=True)))
        new = torch.randn(sum(lengths), CONFIG.latent_dim)
        keys = torch.randn(sum(lengths), CONFIG.index_head_dim)
        view.write(1, LATENTS, new)
        view.write(0, INDEX_KEYS, keys)
        flat = [p for begin, n in zip(past, lengths, strict=True) for p in range(begin, begin + n)]
        assert view.positions.tolist() == flat
        for i, span in enumerate(view.spans):
            part = slice(span.start, span.stop)
            rows[i].append((new[part], keys[part]))
            past[i] += lengths[i]
            latents = torch.cat([r[0] for r in rows[i]])
            assert torch.equal(view.read(1, LATENTS, i), latents)
            assert torch.equal(view.read(0, INDEX_KEYS, i), torch.cat([r[1] for r in rows[i]]))
            wanted = torch.tensor([[0, past[i] - 1], [past[i] // 2, 1]])
            assert torch.equal(view.pool(1, LATENTS).stored[view.slots(i, wanted)], latents[wanted])


def test_a_run_is_read_as_a_view_and_a_scattered_table_as_a_copy() -> None:
    cache = PagedCache(CONFIG, 6, 4)
    view = cache.view([[1, 2], [5, 0]], [(0, 8), (0, 8)])
    base = cache.pool(0, LATENTS).stored
    run, copy = view.read(0, LATENTS, 0), view.read(0, LATENTS, 1)
    assert run.data_ptr() == base[4:].data_ptr()
    assert not base.data_ptr() <= copy.data_ptr() < base.data_ptr() + base.nbytes


def test_agrees_with_the_in_flight_view() -> None:
    lengths = [5, 3]
    paged = PagedCache(CONFIG, 4, 4).view([[3, 0], [2]], [(0, n) for n in lengths])
    flight = InFlightView(lengths)
    x, k = torch.randn(8, CONFIG.latent_dim), torch.randn(8, CONFIG.index_head_dim)
    for view in (paged, flight):
        view.write(0, LATENTS, x)
        view.write(0, INDEX_KEYS, k)
    assert torch.equal(paged.positions, flight.positions)
    assert paged.spans == flight.spans
    assert paged.num_rows == flight.num_rows == 8
    for i in range(2):
        assert torch.equal(paged.read(0, LATENTS, i), flight.read(0, LATENTS, i))
        assert torch.equal(paged.read(0, INDEX_KEYS, i), flight.read(0, INDEX_KEYS, i))
        at = torch.arange(lengths[i])
        ours, theirs = paged.pool(0, LATENTS).stored, flight.pool(0, LATENTS).stored
        assert torch.equal(ours[paged.slots(i, at)], theirs[flight.slots(i, at)])


def test_rows_are_stored_in_the_cache_type() -> None:
    cache = PagedCache(CONFIG, 1, 4, torch.bfloat16)
    view = cache.view([[0]], [(0, 2)])
    x = torch.randn(2, CONFIG.latent_dim)
    view.write(0, LATENTS, x)
    assert torch.equal(view.read(0, LATENTS, 0), x.bfloat16())


def test_a_tables_tensor_grows_with_it_and_dies_with_it() -> None:
    cache, table = PagedCache(CONFIG, 8, 4), BlockTable([5, 1])
    assert cache.block_ids(table).tolist() == [5, 1]
    table.extend([7])
    assert cache.block_ids(table).tolist() == [5, 1, 7]
    assert len(cache._tables) == 1
    del table
    assert len(cache._tables) == 0


def test_memory_is_reserved_but_not_touched() -> None:
    def resident() -> int:
        try:
            with open("/proc/self/statm", encoding="ascii") as file:
                return int(file.read().split()[1])
        except OSError:
            pytest.skip("resident memory is read from /proc")

    before = resident()
    cache = PagedCache(CONFIG, 10_000)
    assert cache.nbytes > 300 << 20
    cache.view([[0]], [(0, 1)]).write(0, LATENTS, torch.zeros(1, CONFIG.latent_dim))
    assert resident() - before < 10_000  # pages of 4 KiB: under 40 MiB


def test_mistakes_are_refused() -> None:
    cache = PagedCache(CONFIG, 2, 4)
    with pytest.raises(ValueError, match="sequence 0 has 9 tokens, but its 2 blocks hold 8"):
        cache.view([[0, 1]], [(8, 1)])
    with pytest.raises(ValueError, match="block 2 does not exist"):
        cache.view([[2]], [(0, 1)])
    with pytest.raises(ValueError, match="1 block tables for 2 sequences"):
        cache.view([[0]], [(0, 1), (0, 1)])
    with pytest.raises(ValueError, match="floating"):
        PagedCache(CONFIG, 2, 4, torch.int64)
    with pytest.raises(ValueError, match="num_blocks=0"):
        PagedCache(CONFIG, 0)
    with pytest.raises(ValueError, match="no draft layer"):
        PagedCache(CONFIG.replace(num_nextn_predict_layers=0), 2, draft=True)
    with pytest.raises(ValueError, match=r"cannot reserve a cache of .* tokens"):
        PagedCache(CONFIG, 1 << 45)
