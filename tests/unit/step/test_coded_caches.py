"""The C++ step over caches of few bits: against its naive twin, in place, the same bits in any batch."""

import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from indexshare import ops
from indexshare.cache.codecs import Pool
from indexshare.cache.paged import PagedCache, PagedView
from indexshare.config import preset
from indexshare.config.layers import INDEX_KEYS
from indexshare.config.mla import LATENTS
from indexshare.model.forward_pass import attention_limit
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selection import FULL_ATTENTION
from indexshare.ops.coded.rows import Rows
from indexshare.ops.native import LEVELS, Level, _load, build, native, processor_features
from indexshare.step import reference
from indexshare.step.native_step import NativeStep
from tests.tolerance import TOL
from tests.unit.step.test_native_step import random_config, random_model, total_variation

pytestmark = pytest.mark.skipif(native().library is None, reason=native().reason)
KINDS = ["int8", "fp8", "bfloat16"]
BOUNDS = TOL["decode step, rounded caches", "float32"].bounds


def rows_of(pool: Pool) -> Rows:
    return pool.at(torch.zeros(1, dtype=torch.int64))[0]


class Twins:
    """A model on two caches with the same rows of few bits: one for the C++ step, one for the reference."""

    def __init__(
        self, model: GlmMoeDsa, lengths: Iterable[int], codecs: dict[str, str], *, block_size: int = 8
    ) -> None:
        self.model, self.lengths, self.native = model, list(lengths), NativeStep(model)
        self.weights = reference.plain_weights(model)
        per = [-(-(n + 12) // block_size) for n in self.lengths]
        blocks = random.Random(len(per)).sample(range(sum(per) + 2), sum(per))
        self.tables = [[blocks.pop() for _ in range(n)] for n in per]
        dtype = model.embed_tokens.weight.dtype
        self.caches = [PagedCache(model.config, sum(per) + 2, block_size, dtype, codecs=codecs) for _ in "ab"]
        for pool, other in zip(*(cache.pools.values() for cache in self.caches), strict=True):
            pool.stored.view(torch.uint8).fill_(255)  # NaN in every form: what holds no token must not be read
            for table, length in zip(self.tables, self.lengths, strict=True):
                at = torch.arange(length)
                slots = torch.tensor(table)[at // block_size] * block_size + at % block_size
                pool.write(slots, torch.randn(length, pool.codec.stream.width).to(dtype))
            other.stored.copy_(pool.stored)

    def step(self, sizes: list[int], *, below: int = 0) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Hidden states and logits of both for `sizes` new tokens of each sequence."""
        ids = torch.randint(self.model.config.vocab_size, (sum(sizes),)).tolist()
        spans = list(zip(self.lengths, sizes, strict=True))
        mine, other = (cache.view(self.tables, spans) for cache in self.caches)
        with torch.inference_mode():
            assert self.native.refusal(mine) is None
            actual = self.native(ids, mine, full_attention_below=below)
            expected = self._reference(ids, other, below)
        self.lengths = [n + size for n, size in spans]
        return actual, expected

    def _reference(self, ids: list[int], view: PagedView, below: int) -> tuple[Tensor, Tensor]:
        config, cache = self.model.config, self.caches[1]
        layers, is_full = range(config.num_hidden_layers), self.model.plan.is_full
        return reference.step(
            config, self.weights, ids, view.positions, view.written,
            [view.block_ids(i) for i, span in enumerate(view.spans) for _ in range(span.length)],
            latents=[rows_of(cache.pool(layer, LATENTS)) for layer in layers],
            index_keys=[rows_of(cache.pool(i, INDEX_KEYS)) if is_full(i) else None for i in layers],
            block_size=cache.block_size, limit=attention_limit(config, below), wanted=range(len(ids)),
        )  # fmt: skip

    def check_caches(self) -> None:
        """What both wrote, and that they wrote nothing else: rows differ by no more than a step of their codes."""
        for pool, other in zip(*(cache.pools.values() for cache in self.caches), strict=True):
            mine, theirs = (rows_of(each)[:] for each in (pool, other))
            assert torch.equal(mine.isnan(), theirs.isnan())
            of_row = theirs.abs().nan_to_num(0.0).amax(-1, keepdim=True).expand_as(theirs)
            assert ((mine - theirs).nan_to_num(0.0).abs() <= of_row / 8 + 1e-3).all()
            same = (mine - theirs).abs() <= 1e-5 * of_row
            assert same.sum() >= 0.9 * (~theirs.isnan()).sum()


def names(draw: random.Random) -> dict[str, str]:
    """One stream or both in few bits."""
    chosen = {LATENTS: draw.choice(KINDS), INDEX_KEYS: draw.choice(KINDS)}
    if draw.random() < 0.4:
        del chosen[draw.choice([LATENTS, INDEX_KEYS])]
    return chosen


def check_float32(seed: int) -> None:
    config, draw = random_config(seed), random.Random(seed)
    lengths = [draw.choice([0, 1, config.index_topk - 1, config.index_topk, draw.randint(2, 90)]) for _ in range(5)]
    twins = Twins(random_model(config, seed), lengths, names(draw), block_size=draw.choice([1, 3, 8, 64]))
    below = draw.choice([0, 0, 0, config.index_topk + 5, FULL_ATTENTION])
    for _ in range(2):
        actual, expected = twins.step([draw.randint(1, 3) for _ in lengths], below=below)
        assert total_variation(actual[1], expected[1]).mean() <= BOUNDS["atol"]
    twins.check_caches()


@pytest.mark.parametrize("seed", range(300, 324))
def test_random_models(seed: int) -> None:
    check_float32(seed)


def check_bfloat16(seed: int) -> None:
    config, draw = random_config(seed, even=True), random.Random(seed)
    config = config.replace(mlp_layer_types=("dense",) * config.num_hidden_layers)
    codecs = {LATENTS: draw.choice(KINDS[:2]), INDEX_KEYS: draw.choice(KINDS[:2])}
    twins = Twins(random_model(config, seed).bfloat16(), [draw.randint(0, 60) for _ in range(4)], codecs)
    actual, expected = twins.step([1, 2, 1, 3], below=FULL_ATTENTION)
    assert total_variation(actual[1], expected[1]).mean() < TOL["decode step", "bfloat16"].atol


@pytest.mark.parametrize("seed", range(330, 336))
def test_bfloat16(seed: int) -> None:
    check_bfloat16(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_alone_and_in_a_batch(kind: str) -> None:
    """What was read does not depend on the batch, nor what was written."""
    codecs = {LATENTS: kind, INDEX_KEYS: kind}
    together, alone = (Twins(random_model(preset("tiny"), 5), [70, 0, 9], codecs) for _ in "ab")
    for cache, other in zip(together.caches, alone.caches, strict=True):
        for pool, twin in zip(cache.pools.values(), other.pools.values(), strict=True):
            twin.stored.copy_(pool.stored)
    with torch.inference_mode():
        spans = [(70, 1), (0, 1), (9, 1)]
        batch = together.native([3, 4, 5], together.caches[0].view(together.tables, spans))
        for row, (table, span) in enumerate(zip(alone.tables, spans, strict=True)):
            single = alone.native([3 + row], alone.caches[0].view([table], [span]))
            assert torch.equal(single[1][0], batch[1][row])
    for key, pool in together.caches[0].pools.items():
        mine, theirs = (each.stored.view(torch.uint8) for each in (pool, alone.caches[0].pools[key]))
        assert torch.equal(mine, theirs), key


@pytest.mark.slow
@pytest.mark.parametrize("level", [each for each in LEVELS if each.needs <= processor_features()], ids=lambda e: e.name)
def test_every_level_agrees(level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _load(build(tmp_path, level), level)
    assert loaded.library is not None, loaded.reason
    for room in ("indexshare.step.native_step", "indexshare.step.decoder", "indexshare.ops.packed.packing"):
        monkeypatch.setattr(f"{room}.native", lambda: loaded)
    torch.manual_seed(0)
    for seed in range(6):
        check_float32(300 + seed)
        check_bfloat16(330 + seed)


def test_a_codec_that_only_torch_knows_is_refused() -> None:
    model = random_model(preset("tiny"), 5)
    cache = PagedCache(model.config, 4, 8, codecs="float16")
    with torch.inference_mode():
        refusal = NativeStep(model).refusal(cache.view([[0]], [(0, 1)]))
    assert refusal == "a cache with a codec that the kernels do not know" and not ops.forced()
