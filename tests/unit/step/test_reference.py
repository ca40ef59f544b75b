"""The C++ step against its naive twin: odd sizes, contexts beyond the selection, ties, packed weights, any batch."""

import random
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from indexshare.adapt.quantized import quantize_weights
from indexshare.cache.paged import PagedCache, PagedView
from indexshare.config import preset
from indexshare.config.layers import INDEX_KEYS
from indexshare.config.mla import LATENTS
from indexshare.model.forward_pass import attention_limit
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selection import FULL_ATTENTION
from indexshare.ops.native import native
from indexshare.step import reference
from indexshare.step.native_step import NativeStep
from tests.tolerance import TOL
from tests.unit.step.test_native_step import random_config, random_model, total_variation

pytestmark = pytest.mark.skipif(native().library is None, reason=native().reason)
BOUNDS = TOL["decode step", "float32"].bounds


class Twins:
    """A model on two caches with the same rows: one for the C++ step, one for the reference."""

    def __init__(self, model: GlmMoeDsa, lengths: Iterable[int], *, block_size: int = 8, room: int = 24) -> None:
        self.model, self.lengths, self.native = model, list(lengths), NativeStep(model)
        self.weights = reference.plain_weights(model)
        per = [-(-(n + room) // block_size) for n in self.lengths]
        self.blocks = sum(per) + 2
        blocks = random.Random(len(per)).sample(range(self.blocks), sum(per))
        self.tables = [[blocks.pop() for _ in range(n)] for n in per]
        self.caches = [PagedCache(model.config, self.blocks, block_size, model.embed_tokens.weight.dtype) for _ in "ab"]
        generator = torch.Generator().manual_seed(len(per))
        for pool, other in zip(*(cache.pools.values() for cache in self.caches), strict=True):
            pool.stored.fill_(torch.nan)  # what holds no token must not be read
            for table, length in zip(self.tables, self.lengths, strict=True):
                for at in range(length):
                    row = torch.randn(pool.stored.shape[1], generator=generator)
                    pool.stored[table[at // block_size] * block_size + at % block_size] = row
            other.stored.copy_(pool.stored)

    def step(
        self, sizes: list[int], *, below: int = 0, wanted: list[int] | None = None, ids: list[int] | None = None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Hidden states and logits of both for `sizes` new tokens of each sequence."""
        ids = torch.randint(self.model.config.vocab_size, (sum(sizes),)).tolist() if ids is None else ids
        spans = list(zip(self.lengths, sizes, strict=True))
        mine, other = (cache.view(self.tables, spans) for cache in self.caches)
        with torch.inference_mode():
            assert self.native.refusal(mine) is None
            actual = self.native(ids, mine, full_attention_below=below, wanted=wanted)
            expected = self._reference(ids, other, below, list(range(len(ids))) if wanted is None else wanted)
        self.lengths = [n + size for n, size in spans]
        return actual, expected

    def _reference(self, ids: list[int], view: PagedView, below: int, wanted: list[int]) -> tuple[Tensor, Tensor]:
        config, cache = self.model.config, self.caches[1]
        layers = range(config.num_hidden_layers)
        return reference.step(
            config, self.weights, ids, view.positions, view.written,
            [view.block_ids(i) for i, span in enumerate(view.spans) for _ in range(span.length)],
            latents=[cache.pool(layer, LATENTS).stored for layer in layers],
            index_keys=[cache.pool(i, INDEX_KEYS).stored if self.model.plan.is_full(i) else None for i in layers],
            block_size=cache.block_size, limit=attention_limit(config, below), wanted=wanted,
        )  # fmt: skip

    def check_caches(self, **bounds: float) -> None:
        """What both wrote, and that they wrote nothing else."""
        for pool, other in zip(*(cache.pools.values() for cache in self.caches), strict=True):
            assert torch.equal(pool.stored.isnan(), other.stored.isnan())
            torch.testing.assert_close(pool.stored, other.stored, equal_nan=True, **bounds)


@pytest.mark.parametrize("seed", range(200, 224))
def test_random_models(seed: int) -> None:
    config, draw = random_config(seed), random.Random(seed)
    lengths = [draw.choice([0, 1, config.index_topk - 1, config.index_topk, draw.randint(2, 90)]) for _ in range(5)]
    twins = Twins(random_model(config, seed), lengths, block_size=draw.choice([1, 3, 8, 64]))
    below = draw.choice([0, 0, 0, config.index_topk + 5, FULL_ATTENTION])
    for _ in range(2):
        actual, expected = twins.step([draw.randint(1, 3) for _ in lengths], below=below)
        torch.testing.assert_close(actual, expected, **BOUNDS)
    twins.check_caches(**BOUNDS)


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("seed", range(240, 246))
def test_packed_weights(seed: int, weights: str) -> None:
    """Without router and selection, where activations of 16 bits would choose another expert or token."""
    config, draw = random_config(seed), random.Random(seed)
    config = config.replace(mlp_layer_types=("dense",) * config.num_hidden_layers)
    twins = Twins(quantize_weights(random_model(config, seed), weights), [draw.randint(0, 60) for _ in range(4)])
    actual, expected = twins.step([1, 2, 1, 3], below=FULL_ATTENTION)
    torch.testing.assert_close(actual, expected, **TOL["decode step, packed weights", "float32"].bounds)


@pytest.mark.parametrize("seed", range(260, 264))
def test_bfloat16(seed: int) -> None:
    config, draw = random_config(seed, even=True), random.Random(seed)
    config = config.replace(mlp_layer_types=("dense",) * config.num_hidden_layers)
    twins = Twins(random_model(config, seed).bfloat16(), [draw.randint(0, 60) for _ in range(4)])
    actual, expected = twins.step([1, 2, 1, 3], below=FULL_ATTENTION)
    assert total_variation(actual[1], expected[1]).mean() < TOL["decode step", "bfloat16"].atol


def test_equal_scores_and_equal_experts_go_to_the_lower_number() -> None:
    """Index scores of few values, all experts alike: any other rule of ties attends to other tokens."""
    model = random_model(preset("tiny"), 11)
    for layer in model.layers:
        if layer.self_attn.indexer is not None:
            layer.self_attn.indexer.weights_proj.weight.data.zero_()  # every key scores zero
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.weight.data.zero_()
            layer.mlp.gate.e_score_correction_bias.zero_()
    twins = Twins(model, [60, 17, 100, 3])
    for _ in range(2):
        actual, expected = twins.step([1, 2, 1, 1])
        torch.testing.assert_close(actual, expected, **BOUNDS)


def test_keys_that_are_equal_in_pairs() -> None:
    """Every index key is there twice, and the selection ends within a pair."""
    model = random_model(preset("tiny").replace(index_topk=15), 12)
    twins = Twins(model, [64, 40])
    for cache in twins.caches:
        for layer in model.plan.full_layers:
            keys = cache.pool(layer, INDEX_KEYS).stored
            for table, length in zip(twins.tables, twins.lengths, strict=True):
                at = torch.tensor([table[p // 8] * 8 + p % 8 for p in range(length)])
                keys[at[1::2]] = keys[at[0::2]]
    actual, expected = twins.step([1, 1])
    torch.testing.assert_close(actual, expected, **BOUNDS)


def test_first_tokens_and_wanted_rows() -> None:
    twins = Twins(random_model(preset("tiny"), 13), [0, 0, 30])
    actual, expected = twins.step([1, 4, 2], wanted=[6, 0, 4])
    assert actual[1].shape == (3, 256)
    torch.testing.assert_close(actual, expected, **BOUNDS)
    actual, expected = twins.step([1, 1, 1], wanted=[])
    assert actual[1].shape == expected[1].shape == (0, 256)
    torch.testing.assert_close(actual, expected, **BOUNDS)
    twins.check_caches(**BOUNDS)


def test_one_token_alone() -> None:
    twins = Twins(random_model(preset("tiny"), 14), [0])
    for token in (5, 5, 250):
        actual, expected = twins.step([1], ids=[token])
        torch.testing.assert_close(actual, expected, **BOUNDS)


def test_no_rows_at_all() -> None:
    twins = Twins(random_model(preset("tiny"), 15), [])
    actual, expected = twins.step([])
    assert [t.shape for t in actual] == [t.shape for t in expected] == [(0, 32), (0, 256)]


@pytest.mark.parametrize("seed", range(280, 286))
def test_the_reference_is_the_model(seed: int) -> None:
    """One token after the other by the reference, against one pass of the modules over everything."""
    config = random_config(seed)
    model, length = random_model(config, seed), 2 * config.index_topk + 5
    cache, ids = PagedCache(config, length, 1), torch.randint(config.vocab_size, (1, length))
    weights, order, parts = reference.plain_weights(model), torch.randperm(length), []
    with torch.inference_mode():
        for at in range(length):
            here = torch.tensor([at])
            parts += reference.step(
                config, weights, ids[0, [at]].tolist(), here, order[here], [order],
                latents=[cache.pool(layer, LATENTS).stored for layer in range(config.num_hidden_layers)],
                index_keys=[
                    cache.pool(layer, INDEX_KEYS).stored if model.plan.is_full(layer) else None
                    for layer in range(config.num_hidden_layers)
                ],
                block_size=1, limit=config.index_topk, wanted=[0],
            )[1]  # fmt: skip
        torch.testing.assert_close(torch.stack(parts)[None], model(ids), **BOUNDS)
