"""Caches in fp8, int8 and bfloat16: bytes as planned, rows rounded once, the model over them as over rounded rows."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from indexshare import ops
from indexshare.cache.codecs import Codec, GroupedCodec, PlainCodec, codec_name, codecs_by_stream, make_codec, row_bytes
from indexshare.cache.paged import PagedCache
from indexshare.config import ModelConfig, preset
from indexshare.config.layers import INDEX_KEYS, Stream
from indexshare.config.mla import LATENTS
from indexshare.model.glm import GlmMoeDsa
from indexshare.ops.coded.rows import CodedRows
from indexshare.planner.formats import stream_row_bytes
from indexshare.planner.memory import cache_bytes, cache_bytes_per_token

CONFIG = preset("tiny")
S = ModelConfig.from_dict(json.loads((Path(__file__).parents[3] / "benchmarks" / "s.json").read_text(encoding="utf-8")))
NAMES = ("float32", "bfloat16", "fp8", "int8")


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("config", [preset("nano"), S, preset("glm-5.2"), CONFIG], ids=["nano", "S", "GLM-5.2", "tiny"])
def test_what_is_allocated_is_what_is_planned(config: ModelConfig, name: str, draft: bool) -> None:
    if draft and not config.num_nextn_predict_layers:
        pytest.skip("no draft layer")
    cache = PagedCache(config, 2, 8, draft=draft, codecs=name)
    planned = "bf16" if name == "bfloat16" else name
    assert cache.nbytes == 16 * cache_bytes_per_token(
        config, draft=draft, row_bytes=lambda stream: stream_row_bytes(stream, planned)
    )
    by_codec = row_bytes(codecs_by_stream(config, name, None), torch.float32)
    assert cache.nbytes == 16 * cache_bytes_per_token(config, draft=draft, row_bytes=by_codec)


@pytest.mark.parametrize(("name", "total"), [("bfloat16", 95_232), ("fp8", 53_940), ("int8", 53_940)])
def test_bytes_of_a_token_of_glm_52(name: str, total: int) -> None:
    config = preset("glm-5.2")
    assert PagedCache(config, 1, 1, codecs=name).nbytes == total
    mixed = row_bytes(codecs_by_stream(config, "bfloat16", "fp8"), torch.float32)
    assert cache_bytes(config, row_bytes=mixed).streams == {LATENTS: 78 * 1152, INDEX_KEYS: 21 * 132}


def test_names_of_users() -> None:
    assert codecs_by_stream(CONFIG, "int8", None) == {LATENTS: "int8", INDEX_KEYS: "int8"}
    assert codecs_by_stream(CONFIG, "int8", "bfloat16") == {LATENTS: "int8", INDEX_KEYS: "bfloat16"}
    assert codecs_by_stream(CONFIG, None, "fp8") == {INDEX_KEYS: "fp8"}
    assert codecs_by_stream(CONFIG, None, None) == {}
    assert codec_name("cache_dtype", torch.bfloat16) == "bfloat16" and codec_name("cache_dtype", None) is None
    assert make_codec("bf16", Stream(name="rows", width=6), torch.float32).row_bytes == 12
    with pytest.raises(
        ValueError, match=r"index_cache_dtype is 'int4'; did you mean 'int8'\? expected one of float32, bf"
    ):
        codec_name("index_cache_dtype", "int4")


def rounded_by(codec: Codec, rows: Tensor) -> Tensor:
    return codec.decode(codec.encode(rows))


def hidden_over(cache: PagedCache, model: GlmMoeDsa, ids: Tensor, table: list[int], bounds: list[int]) -> Tensor:
    parts = [(a, b) for a, b in pairwise(bounds) if a < b]
    return torch.cat([model.trunk(ids[a:b], cache.view([table], [(a, b - a)])) for a, b in parts])


@torch.no_grad()
@pytest.mark.parametrize(
    ("latents", "keys"),
    [("int8", "int8"), ("fp8", "fp8"), ("bfloat16", "bfloat16"), ("int8", None), (None, "fp8"), (None, None)],
)
@pytest.mark.parametrize("scattered", [False, True])
def test_a_model_runs_over_rows_in_place_as_over_rounded_ones(
    latents: str | None, keys: str | None, scattered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond `index_topk`, in chunks and single tokens; the same arithmetic, so bit for bit."""
    model = GlmMoeDsa(CONFIG).initialise(3).eval()
    ids = torch.randint(CONFIG.vocab_size, (61,))
    table = [9, 0, 7, 15, 5, 2, 13, 8, 4, 6, 11, 10, 1, 3, 14, 12] if scattered else list(range(16))
    bounds = [0, 17, 39, 40, 41, 60, 61]
    names = {stream: name for stream, name in ((LATENTS, latents), (INDEX_KEYS, keys)) if name is not None}
    with ops.force("torch"):
        coded = hidden_over(PagedCache(CONFIG, 16, 4, codecs=names), model, ids, table, bounds)
        plain = hidden_over(PagedCache(CONFIG, 16, 4), model, ids, table, bounds)

        def rounded(codec: PlainCodec, rows: Tensor) -> Tensor:
            name = names.get(codec.stream.name, "float32")
            if name in ("float32", "bfloat16"):
                return rows.to(getattr(torch, name)).to(rows.dtype)
            return rounded_by(make_codec(name, codec.stream, rows.dtype), rows)

        monkeypatch.setattr(PlainCodec, "encode", rounded)
        assert torch.equal(coded, hidden_over(PagedCache(CONFIG, 16, 4), model, ids, table, bounds))
    assert bool(names) != torch.equal(coded, plain)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_token_s_row_never_changes(name: str) -> None:
    model, ids = GlmMoeDsa(CONFIG).initialise(3).eval(), torch.randint(CONFIG.vocab_size, (40,))
    cache = PagedCache(CONFIG, 10, 4, codecs=name)
    hidden_over(cache, model, ids, list(range(10)), [0, 17])
    before = {key: pool.stored[:17].clone() for key, pool in cache.pools.items()}
    for past in range(17, 40):
        model.trunk(ids[past : past + 1], cache.view([list(range(10))], [(past, 1)]))
    for key, pool in cache.pools.items():
        assert torch.equal(pool.stored[:17], before[key]), key


def test_pools_are_read_as_they_lie() -> None:
    cache = PagedCache(CONFIG, 4, 4, codecs="int8")
    view = cache.view([[0, 1], [3, 2]], [(0, 5), (0, 8)])
    rows = torch.randn(13, CONFIG.latent_dim)
    view.write(0, LATENTS, rows)
    pool = view.pool(0, LATENTS)
    assert isinstance(pool.codec, GroupedCodec)
    found, slots = pool.at(torch.tensor([[0, -1]]))
    assert isinstance(found, CodedRows) and slots.tolist() == [[0, -1]]
    assert found.stored.data_ptr() == pool.stored.data_ptr(), "no copy"
    one_run = view.stored(0, LATENTS, 0)
    assert isinstance(one_run, CodedRows) and one_run.stored.data_ptr() == pool.stored.data_ptr()
    for sequence, part in enumerate((rows[:5], rows[5:])):
        assert torch.equal(view.read(0, LATENTS, sequence), rounded_by(pool.codec, part))
        stored = view.stored(0, LATENTS, sequence)
        assert torch.equal(stored[2:4], rounded_by(pool.codec, part[2:4]))


def test_gradients_over_a_cache_of_few_bits_are_refused() -> None:
    cache = PagedCache(CONFIG, 4, 4, codecs="int8")
    view = cache.view([[0]], [(0, 3)])
    view.write(0, LATENTS, torch.randn(3, CONFIG.latent_dim))
    rows, slots = view.pool(0, LATENTS).at(torch.zeros(2, 1, dtype=torch.int64))
    q = torch.randn(2, 3, CONFIG.latent_dim, requires_grad=True)
    with pytest.raises(ValueError, match=r"rows of a cache in int8 have no gradient; use torch\.no_grad"):
        ops.sparse_mla(q, rows, slots, 1.0, CONFIG.kv_lora_rank)
