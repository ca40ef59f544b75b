"""Rows in files: what is written is read back, whatever had to make room; failures are told of, by row."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from indexshare.cache import spill
from indexshare.cache.paged import PagedCache
from indexshare.cache.spill import Group, SpillCounts
from indexshare.cache.spilled import SpilledCache
from indexshare.config import preset
from indexshare.config.layers import INDEX_KEYS
from indexshare.config.mla import LATENTS
from indexshare.model.glm import GlmMoeDsa
from indexshare.planner.memory import cache_bytes_per_token
from indexshare.step.native_step import NativeStep, unavailable

CONFIG = preset("tiny")  # index_topk 8
LENGTH = 500


def group(folder: Path, slots: int = 200, places: int = 20, row_bytes: int = 48) -> Group:
    return Group(slots, places, row_bytes, folder, SpillCounts())


def row_of(slots: np.ndarray, version: np.ndarray) -> np.ndarray:
    return (slots[:, None] * 7 + version[slots][:, None] * 13 + np.arange(48)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_random_traffic_reads_what_was_written_last(tmp_path: Path, seed: int) -> None:
    own, rng = group(tmp_path), np.random.default_rng(seed)
    version, known = np.zeros(200, np.int64), np.zeros(200, bool)
    for _ in range(2000):
        slots = np.unique(rng.integers(0, 200, rng.integers(1, 12)))
        kind = rng.integers(4)
        if kind == 0:
            version[slots] += 1
            known[slots] = True
            own.memory[own.admit(slots)] = row_of(slots, version)
            if rng.integers(2):
                own.flush()
        elif len(slots := slots[known[slots]]):
            if kind == 1:
                assert np.array_equal(own.columns(slots, 5, 31), row_of(slots, version)[:, 5:31])
            elif own.fetch(slots):
                assert np.array_equal(own.memory[own.places(slots)], row_of(slots, version))
        if len(own._new) and own._num_new > 8:
            own.flush()
    held = own._holds[own._holds >= 0]
    assert np.array_equal(own.where[held], np.flatnonzero(own._holds >= 0))
    assert len(held) == np.count_nonzero(own.where >= 0) and not own.failed
    assert 0 < own.counts.found < own.counts.rows and own.counts.bytes_read > 0


def test_hot_rows_stay(tmp_path: Path) -> None:
    own, version = group(tmp_path), np.zeros(200, np.int64)
    for first in range(0, 200, 10):
        slots = np.arange(first, first + 10)
        own.memory[own.admit(slots)] = row_of(slots, version)
        own.flush()
    hot = np.arange(5)
    own.fetch(hot)
    for first in range(20, 200, 5):
        assert own.fetch(np.arange(first, first + 5))
        assert (own.where[hot] >= 0).all()
        own.fetch(hot)
    assert not own.fetch(np.arange(21))  # more than there are places, and nothing happened
    assert (own.where[hot] >= 0).all()


def test_extents() -> None:
    slots = np.array([1, 2, 3, 7, 8, 20, 21, 22, 23, 24])
    assert list(spill._extents(slots, gap=0, most=100)) == [(0, 3), (3, 5), (5, 10)]
    assert list(spill._extents(slots, gap=3, most=100)) == [(0, 5), (5, 10)]
    assert list(spill._extents(slots, gap=50, most=4)) == [(0, 3), (3, 5), (5, 9), (9, 10)]
    assert list(spill._extents(slots[:0], gap=0, most=4)) == []


def test_a_read_error_costs_its_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, version = group(tmp_path), np.zeros(200, np.int64)
    for first in range(0, 100, 10):
        slots = np.arange(first, first + 10)
        own.memory[own.admit(slots)] = row_of(slots, version)
        own.flush()
    real = os.preadv

    def broken(fd: int, buffers: list, offset: int) -> int:
        if offset <= 40 * 48 < offset + sum(map(len, buffers)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, buffers, offset)

    monkeypatch.setattr(spill, "_GAP_BYTES", 0)
    monkeypatch.setattr(os, "preadv", broken)
    own.fetch(np.array([3, 40, 44]))
    assert own.failed == {40: "cannot be read back: input/output error"}
    assert np.array_equal(own.memory[own.places(np.array([3, 44]))], row_of(np.array([3, 44]), version))
    own.flush()
    assert own.where[40] < 0 <= own.where[44]
    monkeypatch.setattr(os, "preadv", real)
    own.fetch(np.array([40]))
    assert np.array_equal(own.memory[own.places(np.array([40]))], row_of(np.array([40]), version))


def test_a_full_disk_costs_the_new_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, version = group(tmp_path), np.zeros(200, np.int64)
    first, second = np.arange(5), np.arange(50, 55)
    own.memory[own.admit(first)] = row_of(first, version)
    own.flush()

    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    own.memory[own.admit(second)] = row_of(second, version)
    own.flush()
    assert sorted(own.failed) == second.tolist() and "no space left on device" in own.failed[50]
    assert (own.where[second] < 0).all() and (own.where[first] >= 0).all()


@pytest.fixture(scope="module")
def model() -> GlmMoeDsa:
    return GlmMoeDsa(CONFIG).initialise(5).eval()


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(3))


def hidden(model: GlmMoeDsa, ids: torch.Tensor, cache: PagedCache, sizes: list[int]) -> torch.Tensor:
    found, past, blocks = [], 0, list(range(cache.num_blocks))[::-1]
    with torch.inference_mode():
        for size in sizes:
            view = cache.view([blocks], [(past, size)])
            found.append(model.trunk(ids[past : past + size], view))
            past += size
    assert cache.flush() == {}
    return torch.cat(found)


@pytest.mark.parametrize("codec", [None, "int8", "fp8", "bfloat16"])
@pytest.mark.parametrize("places", [140, 300, 512])
@pytest.mark.parametrize("by_layer", [False, True])
def test_the_trunk_reads_the_same_rows(
    model: GlmMoeDsa, ids: torch.Tensor, tmp_path: Path, codec: str | None, places: int, by_layer: bool
) -> None:
    sizes = [120, 40, 120, 3, 120, 1, 96]
    expected = hidden(model, ids, PagedCache(CONFIG, 8, 64, codecs=codec), sizes)
    cache = SpilledCache(CONFIG, 8, 64, codecs=codec, places=places, folder=tmp_path, by_layer=by_layer)
    assert torch.equal(hidden(model, ids, cache, sizes), expected)
    assert (cache.counts.bytes_read > 0) == (places < LENGTH) and cache.counts.bytes_written > 0
    assert list(tmp_path.iterdir()) == []  # files without names


def test_a_group_is_fetched_once_for_all_its_layers(
    model: GlmMoeDsa, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "_GAP_BYTES", 0)
    counts = []
    for by_layer in (False, True):
        cache = SpilledCache(CONFIG, 8, 64, places=200, folder=tmp_path, by_layer=by_layer)
        hidden(model, ids, cache, [100] * 4)
        before = cache.count()
        with torch.inference_mode():
            view = cache.view([list(range(8))[::-1]], [(400, 1)])
            model.trunk(ids[400:401], view)
        counts.append(cache.counts.since(before))
    assert len({id(g) for g in cache.groups.values()}) == CONFIG.num_hidden_layers
    assert 0 < counts[0].reads < counts[1].reads and counts[0].rows == 8 * len(CONFIG.share_plan.full_layers)


@pytest.mark.skipif(unavailable() is not None, reason="no native step")
@pytest.mark.parametrize("codec", [None, "int8"])
@pytest.mark.parametrize("by_layer", [False, True])
def test_the_native_step_reads_the_same_rows(
    model: GlmMoeDsa, ids: torch.Tensor, tmp_path: Path, codec: str | None, by_layer: bool
) -> None:
    plain = PagedCache(CONFIG, 9, 64, codecs=codec)
    spilled = SpilledCache(CONFIG, 9, 64, codecs=codec, places=180, folder=tmp_path, by_layer=by_layer)
    long, short = [8, 1, 2, 5, 4, 3, 6], [7, 0]
    steps = [NativeStep(model), NativeStep(model)]
    with torch.inference_mode():
        for cache in (plain, spilled):
            for past in range(0, 400, 80):
                model.trunk(ids[past : past + 80], cache.view([long], [(past, 80)]))
        for at in range(12):  # the short sequence begins to choose on its way
            sizes = [(400 + 2 * at, 2), (at, 1)]
            results = [
                step([1, 2, 3], cache.view([long, short], sizes))
                for step, cache in zip(steps, (plain, spilled), strict=True)
            ]
            assert all(map(torch.equal, *results))
    assert spilled.flush() == {} and spilled.counts.bytes_read > 0


@pytest.mark.skipif(unavailable() is not None, reason="no native step")
def test_what_a_native_step_cannot_fetch_ends_it_with_that_error(model: GlmMoeDsa, tmp_path: Path) -> None:
    cache = SpilledCache(CONFIG, 4, 64, places=12, folder=tmp_path)
    step = NativeStep(model)
    with torch.inference_mode():
        for at in range(10):
            step([1], cache.view([[0]], [(at, 1)]))
        with pytest.raises(AssertionError, match="rows do not fit among the 12 in memory"):
            step([1] * 6, cache.view([[0]], [(10, 6)]))


def test_sizes(tmp_path: Path) -> None:
    cache = SpilledCache(CONFIG, 4, 64, places=100, folder=tmp_path, draft=True)
    assert cache.nbytes == 256 * cache_bytes_per_token(CONFIG, 4, draft=True)
    keys = 4 * 256 * CONFIG.index_head_dim * (len(CONFIG.share_plan.full_layers) + 1)
    assert cache.memory_bytes == keys + 100 * 4 * CONFIG.latent_dim * (CONFIG.num_hidden_layers + 1)


@pytest.mark.parametrize("codec", [None, "fp8"])
def test_blocks_are_read_and_written_whole(
    model: GlmMoeDsa, ids: torch.Tensor, tmp_path: Path, codec: str | None
) -> None:
    plain = PagedCache(CONFIG, 8, 64, codecs=codec)
    spilled = SpilledCache(CONFIG, 8, 64, codecs=codec, places=140, folder=tmp_path)
    for cache in (plain, spilled):
        hidden(model, ids, cache, [128] * 3)
    for block in (7, 6, 3):
        assert plain.read_block(block) == spilled.read_block(block) or block == 3  # nothing was written into that one
    data = plain.read_block(6)
    spilled.write_block(0, bytearray(data))
    hidden(model, ids, spilled, [128] * 3)
    assert spilled.read_block(0) == data and spilled.block_bytes == plain.block_bytes
    with pytest.raises(ValueError, match="1 bytes for a block of"):
        spilled.write_block(0, bytearray(1))


def test_a_folder_that_takes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"spill: .* cannot have a file: .*; name another folder"):
        SpilledCache(CONFIG, 4, 64, places=100, folder=tmp_path / "absent")
    assert (4, INDEX_KEYS) not in SpilledCache(CONFIG, 4, 64, places=100, folder=tmp_path).groups
    assert SpilledCache(CONFIG, 4, 64, places=100, folder=tmp_path).pool(0, LATENTS).stored.shape[0] == 100
