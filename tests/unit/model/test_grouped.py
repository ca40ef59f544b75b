"""Grouped-query attention in a model that selects: sharing, caches, gradients, saving; and what it cannot do."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from indexshare import LLM, SamplingParams, load_model, ops, save_model
from indexshare.adapt.quantized import quantize_weights
from indexshare.cache.paged import PagedCache
from indexshare.cache.view import InFlightView
from indexshare.config import ModelConfig, preset
from indexshare.config.grouped import KEYS, VALUES
from indexshare.config.variant import Everything, GroupedAttention, Variant
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selection import FULL_ATTENTION
from indexshare.step.native_step import NativeStep
from tests.tolerance import TOL

BOUNDS = TOL["logits between forms", "float32"].bounds
IDS = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(1))  # five times index_topk


def grouped(*, selects: bool = True, **settings: object) -> ModelConfig:
    """`tiny`, its experts and sharing pattern, with eight query heads to a key head."""
    config = preset("tiny")
    attention = GroupedAttention(kv_heads=2, head_dim=12, **settings)  # type: ignore[arg-type]
    changes = {"num_attention_heads": 16, "variant": Variant(attention=attention)}
    if not selects:
        whole = Variant(attention=attention, selection=Everything())
        changes |= {"variant": whole, "num_nextn_predict_layers": 0, "indexer_types": ("full",) * 6}
    return config.replace(**changes)


def made(config: ModelConfig, seed: int = 3) -> GlmMoeDsa:
    return GlmMoeDsa(config).initialise(seed=seed).eval()


@pytest.fixture(scope="module")
def model() -> GlmMoeDsa:
    return made(grouped(qk_norm=True, no_rope_layers=(1,)))


@torch.no_grad()
def test_choosing_everything_is_attending_to_everything(model: GlmMoeDsa) -> None:
    everything = made(model.config.replace(index_topk=40))
    torch.testing.assert_close(everything(IDS), model(IDS, full_attention_below=FULL_ATTENTION), **BOUNDS)
    assert not torch.allclose(model(IDS), everything(IDS), atol=1e-3)
    weights = {
        name: tensor for name, tensor in model.state_dict().items() if "indexer" not in name and "mtp" not in name
    }
    whole = GlmMoeDsa(grouped(selects=False, qk_norm=True, no_rope_layers=(1,))).eval()
    whole.load_state_dict(weights)
    torch.testing.assert_close(whole(IDS), everything(IDS), **BOUNDS)


@pytest.mark.parametrize("codec", [None, "bfloat16", "int8"])
@torch.no_grad()
def test_paged_is_in_flight(model: GlmMoeDsa, codec: str | None) -> None:
    """Prompts in uneven pieces and tokens one by one, in blocks that do not lie together."""
    cache, tables = PagedCache(model.config, 24, 4, codecs=codec), [list(range(0, 24, 2)), list(range(23, 0, -2))]
    below = 0 if codec is None else FULL_ATTENTION  # rounded keys choose other tokens
    rows, done = [], 0
    for size in (7, 16, 5, *[1] * 12):
        part = IDS[:, done : done + size]
        hidden = model.trunk(part.flatten(), cache.view(tables, [(done, size)] * 2), full_attention_below=below)
        rows.append(model.logits(hidden).view(2, size, -1))
        done += size
    got, expected = torch.cat(rows, dim=1), model(IDS, full_attention_below=below)
    if codec is None:
        torch.testing.assert_close(got, expected, **BOUNDS)
    else:
        assert 0 < (got - expected).abs().mean() < 0.05
    assert {name for _, name in cache.pools} == {KEYS, VALUES, "index_keys"}


def test_references_agree(model: GlmMoeDsa) -> None:
    with torch.no_grad():
        expected = model(IDS)
        with ops.force("reference"):
            torch.testing.assert_close(model(IDS), expected, **BOUNDS)


@pytest.mark.parametrize("below", [0, FULL_ATTENTION])
def test_gradients_reach_every_weight_but_the_indexers(model: GlmMoeDsa, below: int) -> None:
    model.zero_grad()
    view = InFlightView([40, 40])
    hidden = model.trunk(IDS.flatten(), view, full_attention_below=below)
    model.logits(hidden).square().mean().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("mtp.") and "experts" not in name:
            assert (parameter.grad is None) == ("indexer" in name), name


def test_saved_and_loaded_and_packed(model: GlmMoeDsa, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    twin = load_model(tmp_path)
    assert twin.config.replace(dtype=model.config.dtype) == model.config
    with torch.no_grad():
        assert torch.equal(twin(IDS), model(IDS))
        expected = model(IDS, full_attention_below=FULL_ATTENTION)
        packed = quantize_weights(twin, "int8")(IDS, full_attention_below=FULL_ATTENTION)
    assert 0 < (packed - expected).abs().mean() < 0.1


def test_the_engine_writes_what_the_model_says(model: GlmMoeDsa) -> None:
    assert "attention of another kind" in str(NativeStep(model)._parts)
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    prompts = [IDS[0].tolist(), IDS[1, :9].tolist()]
    llm, alone = LLM(model, cache_tokens=512), []
    for prompt in prompts:
        text = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(8):
                text = torch.cat([text, model(text)[:, -1:].argmax(-1)], dim=1)
        alone.append(text[0, len(prompt) :].tolist())
    assert [output.token_ids for output in llm.generate(prompts, params)] == alone
    assert llm.generate(prompts[0], params)[0].stats.index_passes_saved > 0


@pytest.mark.parametrize("length", [600, 769, 1003])
def test_a_dense_model_starts_with_known_beginnings(length: int) -> None:
    """To the same bits: what is computed anew is computed in the same tiles."""
    model = made(grouped(selects=False))
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, logprobs=5)
    prompt = [int(i) for i in torch.randint(256, (length,), generator=torch.Generator().manual_seed(2))]
    cold, warm = LLM(model, cache_tokens=2048, prefix_cache=False), LLM(model, cache_tokens=4096)
    expected, first = cold.generate(prompt, params)[0], warm.generate(prompt[:-30], params)[0]
    second = warm.generate(prompt, params)[0]
    assert second.token_ids == expected.token_ids and second.logprobs == expected.logprobs
    assert first.stats.cached_tokens == 0 and second.stats.cached_tokens == (length - 30) // 256 * 256
    assert second.stats.index_passes_run == second.stats.index_passes_saved == 0


def test_index_settings_of_a_dense_model_are_refused(tmp_path: Path) -> None:
    save_model(made(grouped(selects=False)), tmp_path)
    with pytest.raises(ValueError, match="index_topk is 8, but glm_moe_dsa attends to everything"):
        load_model(tmp_path, config_overrides={"index_topk": 8})
    assert load_model(tmp_path, config_overrides={"max_position_embeddings": 64}).config.index_topk == 64
    with pytest.raises(ValueError, match=r"index_cache_dtype|names the stream 'index_keys'"):
        LLM(str(tmp_path), index_cache_dtype="int8", cache_tokens=64)


def test_a_selection_for_each_group_is_refused(model: GlmMoeDsa) -> None:
    def by_group(q: torch.Tensor, weights: torch.Tensor, keys: torch.Tensor, at: torch.Tensor, k: int) -> torch.Tensor:
        return torch.arange(k).expand(len(q), 2, k)

    with torch.no_grad(), pytest.raises(ValueError, match="not implemented with grouped-query attention"):
        model.trunk(IDS[0], InFlightView([40]), selector=by_group)


def test_settings_in_the_file(model: GlmMoeDsa) -> None:
    written = model.config.to_dict()["indexshare"]
    assert written["attention"] == {
        "kind": "gqa", "kv_heads": 2, "head_dim": 12, "qk_norm": True, "qkv_bias": False, "output_bias": False,
        "no_rope_layers": [1],
    }  # fmt: skip
    assert ModelConfig.from_dict(model.config.to_dict()) == model.config
    own = model.config.variant.attention
    with pytest.raises(ValueError, match="5 key/value heads do not divide"):
        model.config.replace(variant=Variant(attention=replace(own, kv_heads=5)))  # type: ignore[type-var]
