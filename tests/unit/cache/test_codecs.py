"""Codecs: a made-up one takes a class and a registration; plain ones store rows in a type of their own."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from indexshare.cache import codecs
from indexshare.cache.codecs import Codec, PlainCodec, codec_names, make_codec, register_codec
from indexshare.cache.paged import PagedCache
from indexshare.cache.view import InFlightView
from indexshare.config import preset
from indexshare.config.layers import INDEX_KEYS, Stream
from indexshare.config.mla import LATENTS
from indexshare.model.glm import GlmMoeDsa
from indexshare.planner.memory import cache_bytes_per_token

CONFIG = preset("tiny")
STREAM = Stream(name="rows", width=6)


class Sixteenths(Codec):
    """Made up: every value as a 16-bit integer of sixteenths, and the row's sum behind them."""

    @property
    def stored(self) -> tuple[torch.dtype, int]:
        return torch.int16, self.stream.width + 1

    def encode(self, rows: Tensor) -> Tensor:
        whole = (rows * 16).round()
        return torch.cat((whole, whole.sum(-1, keepdim=True)), dim=-1).to(torch.int16)

    def decode(self, stored: Tensor) -> Tensor:
        return stored[..., :-1].to(self.dtype) / 16


@pytest.fixture
def sixteenths() -> Iterator[None]:
    register_codec("sixteenths", Sixteenths)
    yield
    del codecs._CODECS["sixteenths"]


def on_the_grid(*shape: int) -> Tensor:
    return torch.randint(-100, 100, shape) / 16


@pytest.mark.parametrize("tables", [[[2, 3], [0, 1]], [[3, 0], [2, 1]]])
def test_a_made_up_codec_keeps_rows_of_a_cache(sixteenths: None, tables: list[list[int]]) -> None:
    cache = PagedCache(CONFIG, 4, 4, codecs={LATENTS: "sixteenths"})
    rows, keys = on_the_grid(9, CONFIG.latent_dim), torch.randn(9, CONFIG.index_head_dim)
    for view, part in (
        (cache.view(tables, [(0, 5), (0, 2)]), slice(7)),
        (cache.view(tables, [(5, 1), (2, 1)]), [7, 8]),
    ):
        view.write(0, LATENTS, rows[part])
        view.write(0, INDEX_KEYS, keys[part])
    first, second = [0, 1, 2, 3, 4, 7], [5, 6, 8]
    for sequence, order in enumerate((first, second)):
        assert torch.equal(view.read(0, LATENTS, sequence), rows[order])
        assert torch.equal(view.read(0, INDEX_KEYS, sequence), keys[order])
    positions = torch.tensor([[5, 0, 5], [2, 2, 3]])
    found, places = view.pool(0, LATENTS).at(view.slots(0, positions))
    assert isinstance(found, Tensor)
    assert torch.equal(found[places], rows[first][positions])
    assert len(found) == 4, "rows are decoded once each"
    assert view.pool(0, LATENTS).at(torch.tensor([9, -1]))[1].tolist() == [1, -1], "none stays none"
    assert view.pool(0, LATENTS).stored.dtype == torch.int16
    assert not cache.in_place


def test_the_planner_counts_a_codecs_bytes(sixteenths: None) -> None:
    cache = PagedCache(CONFIG, 3, 8, draft=True, codecs="sixteenths")
    per_token = cache_bytes_per_token(
        CONFIG, draft=True, row_bytes=lambda stream: make_codec("sixteenths", stream, torch.float32).row_bytes
    )
    assert cache.nbytes == 24 * per_token
    layers, full = CONFIG.num_hidden_layers + 1, len(CONFIG.share_plan.full_layers) + 1
    assert per_token == layers * 2 * (CONFIG.latent_dim + 1) + full * 2 * (CONFIG.index_head_dim + 1)


@torch.no_grad()
def test_a_model_decodes_over_a_made_up_codec(sixteenths: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit as over a plain cache whose rows were rounded in the same way."""
    model = GlmMoeDsa(CONFIG).initialise(3).eval()
    ids, table = torch.randint(CONFIG.vocab_size, (40,)), [9, 0, 7, 1, 5, 2, 3, 8, 4, 6]

    def hidden(cache: PagedCache) -> Tensor:
        parts = ((0, 17), (17, 39), (39, 40))
        return torch.cat([model.trunk(ids[a:b], cache.view([table], [(a, b - a)])) for a, b in parts])

    coded, plain = hidden(PagedCache(CONFIG, 10, 4, codecs="sixteenths")), hidden(PagedCache(CONFIG, 10, 4))

    def rounded(codec: PlainCodec, rows: Tensor) -> Tensor:
        made_up = Sixteenths(codec.stream, codec.dtype)
        return made_up.decode(made_up.encode(rows))

    monkeypatch.setattr(PlainCodec, "encode", rounded)
    assert torch.equal(coded, hidden(PagedCache(CONFIG, 10, 4)))
    assert not torch.equal(coded, plain)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64"])
def test_plain_codecs(name: str) -> None:
    rows = torch.randn(5, STREAM.width)
    codec = make_codec(name, STREAM, torch.float32)
    kept = getattr(torch, name)
    assert codec.stored == (kept, STREAM.width)
    assert codec.row_bytes == kept.itemsize * STREAM.width
    assert torch.equal(codec.decode(codec.encode(rows)), rows.to(kept).float())
    assert codec.is_plain == (name == "float32")
    if codec.is_plain:
        assert codec.decode(rows).data_ptr() == rows.data_ptr(), "no copy"


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no cache codec 'bfloat61'; did you mean 'bfloat16'\?"):
        PagedCache(CONFIG, 2, codecs="bfloat61")
    with pytest.raises(ValueError, match=r"names the stream 'latent'; this model's streams are index_keys, latents"):
        PagedCache(CONFIG, 2, codecs={"latent": "bfloat16"})
    assert set(codec_names()) == {"float32", "bfloat16", "float16", "float64", "fp8", "int8"}


def test_full_layers_announce_what_they_chose() -> None:
    """Once per Full layer, after its choice and before anything of it is read."""
    seen: list[tuple[int, Tensor]] = []

    class Listening(InFlightView):
        def announce(self, layer: int, slots: Tensor) -> None:
            seen.append((layer, slots))

    model = GlmMoeDsa(CONFIG).initialise(1).eval()
    with torch.no_grad():
        model.trunk(torch.randint(CONFIG.vocab_size, (30,)), Listening([20, 10]))
    assert [layer for layer, _ in seen] == list(CONFIG.share_plan.full_layers)
    beyond = (20 - CONFIG.index_topk) + (10 - CONFIG.index_topk)
    assert all(slots.shape == (beyond, CONFIG.index_topk) for _, slots in seen)
    seen.clear()
    with torch.no_grad():
        model.trunk(torch.arange(CONFIG.index_topk), Listening([CONFIG.index_topk]))
    assert seen == [], "a short context is attended to in full"
