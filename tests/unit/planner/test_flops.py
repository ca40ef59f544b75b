"""Operations and bytes against published figures, against sums over tokens, and against the modules' own shapes."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from indexshare.config import ModelConfig, preset
from indexshare.model.glm import GlmMoeDsa
from indexshare.planner.flops import Work, cache_row_bytes, prefill_flops, step_bytes, token_flops

GLM = preset("glm-5.2")


def without_sharing(config: ModelConfig) -> ModelConfig:
    return config.replace(indexer_types=("full",) * config.num_hidden_layers)


# GFLOP per token with 78 indexers, with 21, their ratio, and dense absorbed attention: weights with the head, scores,
# absorbed attention; derived independently from the dimensions when the release was studied.
PUBLISHED = [
    (8192, 109, 104, 1.05, 169),
    (32768, 125, 108, 1.15, 436),
    (65536, 146, 114, 1.28, 792),
    (131072, 188, 125, 1.50, 1504),
    (262144, 271, 148, 1.83, 2928),
    (524288, 439, 193, 2.27, 5775),
    (1048576, 774, 283, 2.73, 11470),
]


@pytest.mark.parametrize(("context", "every_layer", "shared", "ratio", "dense"), PUBLISHED)
def test_operations_per_token_of_glm_52(context: int, every_layer: int, shared: int, ratio: float, dense: int) -> None:
    plain, ours = token_flops(without_sharing(GLM), context), token_flops(GLM, context)
    full = token_flops(GLM, context, full_attention=True)
    assert plain.total / 1e9 == pytest.approx(every_layer, abs=0.51)
    assert ours.total / 1e9 == pytest.approx(shared, abs=0.51)
    assert plain.total / ours.total == pytest.approx(ratio, abs=0.0051)
    assert (full.total - full.indexer) / 1e9 == pytest.approx(dense, abs=0.51)


def test_the_published_ratio_at_a_million_tokens() -> None:
    """2.9 is weights and scores without the attention itself; with it, 2.73 absorbed and 2.81 expanded."""
    plain, ours = token_flops(without_sharing(GLM), 1 << 20), token_flops(GLM, 1 << 20)
    assert round((plain.total - plain.attention) / (ours.total - ours.attention), 2) == 2.88
    headless = [work.total - work.attention - work.head for work in (plain, ours)]
    assert round(headless[0] / headless[1], 2) == 2.89
    assert round(plain.total / ours.total, 2) == 2.73
    expanded = [token_flops(c, 1 << 20, absorbed=False).total for c in (without_sharing(GLM), GLM)]
    assert round(expanded[0] / expanded[1], 2) == 2.81


@pytest.mark.parametrize(("tokens", "ratio"), [(131072, 1.28), (1 << 20, 2.29)])
def test_a_whole_prompt_gains_less_than_its_last_token(tokens: int, ratio: float) -> None:
    plain, ours = prefill_flops(without_sharing(GLM), tokens), prefill_flops(GLM, tokens)
    assert round(plain.total / ours.total, 2) == ratio


@pytest.mark.parametrize("full_attention", [False, True])
@pytest.mark.parametrize(("past", "tokens"), [(0, 1), (0, 5), (3, 9), (7, 2), (8, 1), (30, 12)])
def test_a_prefill_is_the_sum_of_its_tokens(past: int, tokens: int, full_attention: bool) -> None:
    config = preset("tiny")  # selects 8
    whole = prefill_flops(config, tokens, past=past, full_attention=full_attention)
    parts = [token_flops(config, n, full_attention=full_attention) for n in range(past + 1, past + tokens + 1)]
    for stage, value in whole.to_dict().items():
        if stage not in ("head", "total"):
            assert value == sum(part.to_dict()[stage] for part in parts), stage
    assert whole.head == parts[0].head
    assert whole.total == sum(value for stage, value in whole.to_dict().items() if stage != "total")


@pytest.mark.parametrize("name", ["tiny", "nano", "glm-5.2", "deepseek-v3.2"])
def test_products_equal_the_modules_matrices(name: str) -> None:
    """Two operations for every weight of every matrix that a token meets."""
    config = preset(name)
    with torch.device("meta"):
        model = GlmMoeDsa(config.replace(num_nextn_predict_layers=0))
    matrices = {n: p.numel() for n, p in model.named_parameters() if p.dim() > 1 and n != "embed_tokens.weight"}
    routed = sum(size for n, size in matrices.items() if ".experts." in n)
    met = sum(matrices.values()) - routed + routed * config.num_experts_per_tok // config.n_routed_experts
    work = token_flops(config, config.index_topk + 1)
    assert work.projections + work.indexer + work.feed_forward + work.head == 2 * met
    assert isinstance(model.lm_head, nn.Linear)


def test_bytes_of_a_decode_step_at_a_million_tokens() -> None:
    """FP8 weights and rows: 40 GB of weights, 105 MB of latents, 2.9 GB of index keys with sharing and 10.8 without."""
    rows = {"weight_bytes": 1, "latent_row_bytes": 656, "index_key_bytes": 132}
    shared, plain = (step_bytes(c, 1 << 20, **rows) for c in (GLM, without_sharing(GLM)))
    assert round((shared.total - shared.scores - shared.attention) / 1e9, 1) == 40.3
    assert round(shared.attention / 1e6) == 105
    assert round(shared.scores / 1e9, 1) == 2.9
    assert round(plain.scores / 1e9, 1) == 10.8
    assert round(plain.total / shared.total, 1) == 1.2


def test_bytes_follow_rows_and_selection() -> None:
    config = preset("tiny")
    latent, key = cache_row_bytes(config, 2)
    assert (latent, key) == (config.latent_dim * 2, config.index_head_dim * 2)
    short, long = step_bytes(config, 8), step_bytes(config, 9)
    assert (short.scores, short.attention) == (0, 6 * 8 * latent)
    assert (long.scores, long.attention) == (3 * 9 * key, 6 * 8 * latent)
    assert step_bytes(config, 9, full_attention=True).attention == 6 * 9 * latent
    assert step_bytes(config, 100, rows=3).attention == 6 * 24 * latent
    assert step_bytes(config, 20, rows=3).attention == 6 * 20 * latent
    one, many = step_bytes(config, 100), step_bytes(config, 100, rows=64)
    assert one.feed_forward < many.feed_forward  # more experts are met, never more than there are
    assert many.feed_forward <= step_bytes(config, 10**6, rows=10**6).feed_forward
    assert one.head == many.head == config.vocab_size * config.hidden_size * 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: token_flops(GLM, 0),
        lambda: prefill_flops(GLM, 0),
        lambda: prefill_flops(GLM, 1, past=-1),
        lambda: step_bytes(GLM, 3, rows=4),
    ],
)
def test_impossible_counts_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="expected an integer of at least"):
        call()


def test_work_adds_up() -> None:
    assert Work(projections=1, scores=2, head=5).total == 8
    assert Work(projections=1, scores=2, head=5).largest == ("head", 0.625)
    assert Work(scores=2).to_dict() == {
        "projections": 0, "indexer": 0, "scores": 2, "attention": 0, "feed_forward": 0, "head": 0, "total": 2,
    }  # fmt: skip
