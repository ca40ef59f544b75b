"""Our model against transformers' `GlmMoeDsaForCausalLM` and `DeepseekV32ForCausalLM` in float32.

Random small configurations: irregular Full/Shared patterns, `index_topk` of 2 to 16 under lengths of 31 to
63, expert groups, one or three dense layers, several head widths, YaRN, padding on either side.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexshare import LLM, SamplingParams, SharePlan, load_model
from indexshare.cache.paged import PagedCache
from indexshare.config.model import ModelConfig
from tests.parity.harness import clear_batch, clear_continuations, transformers, twins
from tests.tolerance import TOL

GLM = [("glm", seed) for seed in range(24)]
DEEPSEEK = [("deepseek", seed) for seed in range(6)]
NEW_TOKENS = 16
CHUNKS = (5, 1, 17)  # prefill is cut into these lengths in turn
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are so small that a second thread only costs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("kind", "seed"), GLM + DEEPSEEK)
def test_prefill_logits(kind: str, seed: int, side: str) -> None:
    pair = twins(kind, seed)
    batch, expected = clear_batch(pair, side)
    assert batch.lengths[0] >= 1.9 * pair.case.sizes["index_topk"]
    with torch.no_grad():
        got = pair.ours(batch.ids, batch.mask)
    real = batch.mask.bool()
    assert expected[real].std() > 0.5  # otherwise a small difference would mean little
    torch.testing.assert_close(got[real], expected[real], **TOL["public prefill logits", "float32"].bounds)


def chunked_prefill(model: Any, cache: PagedCache, table: list[int], prompt: torch.Tensor) -> torch.Tensor:
    """Run a prompt through the cache in uneven chunks; the last row's logits."""
    done, turn = 0, 0
    while done < len(prompt):
        part = prompt[done : done + CHUNKS[turn % len(CHUNKS)]]
        hidden = model.trunk(part, cache.view([table], [(done, len(part))]))
        done, turn = done + len(part), turn + 1
    return model.logits(hidden[-1:])


@pytest.mark.parametrize(("kind", "seed"), GLM + DEEPSEEK)
def test_decode_logits_through_the_paged_cache(kind: str, seed: int) -> None:
    pair = twins(kind, seed)
    wanted = clear_continuations(kind, seed, NEW_TOKENS)[:2]
    cache = PagedCache(pair.ours.config, num_blocks=24, block_size=8)
    # Interleaved blocks: the two sequences' tokens are not consecutive in the cache.
    tables = [list(range(0, 24, 2)), list(range(23, 0, -2))]
    with torch.no_grad():
        first = [chunked_prefill(pair.ours, cache, t, w.prompt) for t, w in zip(tables, wanted, strict=True)]
        rows = [torch.cat(first)]
        for step in range(NEW_TOKENS - 1):
            fed = torch.tensor([w.tokens[step] for w in wanted])
            spans = [(len(w.prompt) + step, 1) for w in wanted]
            rows.append(pair.ours.logits(pair.ours.trunk(fed, cache.view(tables, spans))))
    got = torch.stack(rows, dim=1)
    expected = torch.stack([w.logits for w in wanted])
    torch.testing.assert_close(got, expected, **TOL["public decode logits", "float32"].bounds)
    assert got.argmax(-1).tolist() == [w.tokens for w in wanted]


@pytest.mark.parametrize(("kind", "seed"), GLM[:20] + DEEPSEEK[:5])
def test_same_greedy_tokens_from_the_engine(kind: str, seed: int) -> None:
    pair = twins(kind, seed)
    wanted = clear_continuations(kind, seed, NEW_TOKENS)
    llm = LLM(pair.ours, cache_tokens=512, prefill_chunk=11)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
    outputs = llm.generate([w.prompt.tolist() for w in wanted], params)
    assert [list(output.token_ids) for output in outputs] == [w.tokens for w in wanted]


@pytest.mark.parametrize(
    "mistake",
    [
        {"indexer_rope_interleave": False},
        {"index_topk": 7},
        {"indexer_types": ["full", "full", "shared", "shared", "shared", "shared"]},
        {"norm_topk_prob": False},
        {"routed_scaling_factor": 2.6},
    ],
    ids=lambda mistake: next(iter(mistake)),
)
@pytest.mark.filterwarnings("ignore:.*indexer tensors of Shared layers")
def test_the_comparison_notices_mistakes(tmp_path: Path, mistake: dict[str, Any]) -> None:
    """One wrong setting at a time moves the logits by far more than the tolerance."""
    pair = twins("glm", 0)
    batch, expected = clear_batch(pair, "right")
    pair.public.save_pretrained(tmp_path)
    wrong = load_model(tmp_path, dtype="float32", config_overrides=mistake)
    assert wrong.config != pair.ours.config
    real = batch.mask.bool()
    with torch.no_grad():
        difference = (wrong(batch.ids, batch.mask)[real] - expected[real]).abs().max()
    assert difference > 1000 * TOL["public prefill logits", "float32"].atol


@settings(max_examples=40, deadline=None)
@given(layers=st.integers(1, 90), freq=st.integers(0, 9), offset=st.one_of(st.none(), st.integers(0, 9)))
def test_schedule_agrees_with_transformers(layers: int, freq: int, offset: int | None) -> None:
    spelling = {"index_topk_freq": freq} | ({} if offset is None else {"index_skip_topk_offset": offset})
    public = transformers.GlmMoeDsaConfig(num_hidden_layers=layers, **spelling).indexer_types
    ours = {"model_type": "glm_moe_dsa", "num_hidden_layers": layers, **ROPE, **spelling}
    if public[0] == "shared":
        with pytest.raises(ValueError, match="layer 0"):
            ModelConfig.from_dict(ours)
    else:
        assert list(ModelConfig.from_dict(ours).indexer_types) == public


@settings(max_examples=30, deadline=None)
@given(rest=st.text("FS", max_size=80), spelling=st.sampled_from(["pattern", "letters", "types"]))
def test_patterns_and_lists_agree_with_transformers(rest: str, spelling: str) -> None:
    pattern = "F" + rest
    types = ["full" if letter == "F" else "shared" for letter in pattern]
    given_as: dict[str, Any] = {
        "pattern": {"index_topk_pattern": pattern},
        "letters": {"index_topk_pattern": types},
        "types": {"indexer_types": types},
    }[spelling]
    public = transformers.GlmMoeDsaConfig(num_hidden_layers=len(pattern), **given_as)
    config = ModelConfig.from_dict({"model_type": "glm_moe_dsa", "num_hidden_layers": len(pattern), **ROPE, **given_as})
    assert list(config.indexer_types) == public.indexer_types == types
    assert SharePlan.from_pattern(pattern) == config.share_plan


def test_schedule_of_the_released_model() -> None:
    public = transformers.GlmMoeDsaConfig(index_topk_freq=4, index_skip_topk_offset=3)
    full = [layer for layer, kind in enumerate(public.indexer_types) if kind == "full"]
    assert tuple(full) == SharePlan.uniform(78, every=4, offset=3).full_layers == (0, 1, *range(2, 75, 4))
