"""Scores of a text: those of one forward pass over everything, whatever the chunks, windows and other requests."""

import math
from typing import Any

import pytest
import torch

from indexshare.config import preset
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.engine.scoring import cut_windows
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer, train_bpe
from tests.tolerance import TOL

TEXT = "def f(x):\n    return x + 1\n\n\nclass A:\n    pass\n" * 3
NEAR = TOL["engine logprobs", "float32"].atol


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT], 300)


@pytest.fixture(scope="module")
def model() -> GlmMoeDsa:
    return GlmMoeDsa(preset("tiny").replace(vocab_size=320, dtype="float32", index_topk=16)).initialise(0).eval()


def expected(model: GlmMoeDsa, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits = model(torch.tensor([ids]))[0].double()
    return logits.log_softmax(-1)


def near(found: Any, exact: torch.Tensor) -> bool:
    return bool((torch.tensor([t.logprob for t in found], dtype=torch.float64) - exact).abs().max() < NEAR)


@pytest.mark.parametrize("chunk", [7, 64, 2048])
def test_as_one_forward_pass(model: GlmMoeDsa, tokenizer: Tokenizer, chunk: int) -> None:
    llm = LLM(model, tokenizer=tokenizer, cache_tokens=512, prefill_chunk=chunk)
    ids = tokenizer.encode(TEXT)
    table = expected(model, ids)
    score = llm.score(TEXT, top=3)
    assert score.tokens[0] is None and [t.token_id for t in score.tokens if t is not None] == ids[1:]
    assert near(score.tokens[1:], table[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0])
    for row, token in enumerate(score.tokens[1:]):
        assert token is not None and [i for i, _ in token.top] == table[row].topk(3).indices.tolist()
    assert (score.windows, score.scored) == (1, len(ids) - 1)
    assert score.num_bytes == len(TEXT.encode()) - len(tokenizer.token_bytes(ids[0]))
    assert score.bits == pytest.approx(-score.logprob / math.log(2))
    assert score.bits_per_byte == pytest.approx(score.bits / score.num_bytes)
    assert score.perplexity == pytest.approx(math.exp(-score.logprob / (len(ids) - 1)))
    assert llm.engine.allocator.num_free == llm.cache.num_blocks


def test_what_stands_before_is_not_scored(model: GlmMoeDsa, tokenizer: Tokenizer) -> None:
    llm = LLM(model, tokenizer=tokenizer, cache_tokens=512)
    before, text = tokenizer.encode("class B:\n"), tokenizer.encode(TEXT)
    score = llm.score(TEXT, after="class B:\n")
    table = expected(model, before + text)
    exact = table[len(before) - 1 : -1].gather(1, torch.tensor(text)[:, None])[:, 0]
    assert len(score.tokens) == score.scored == len(text) and near(score.tokens, exact)
    assert score.num_bytes == len(TEXT.encode())
    assert near(llm.score(text, after=before).tokens, exact)
    assert llm.score([5], after=[6]).scored == 1


def test_generated_tokens_have_the_scores_they_were_generated_with(model: GlmMoeDsa, tokenizer: Tokenizer) -> None:
    llm = LLM(model, tokenizer=tokenizer, cache_tokens=512)
    params = SamplingParams(max_tokens=20, temperature=1.0, seed=3, logprobs=0, ignore_eos=True)
    (output,) = llm.generate(TEXT, params)
    score = llm.score(output.token_ids, after=tokenizer.encode(TEXT))
    assert output.logprobs is not None
    exact = torch.tensor([entry.logprob for entry in output.logprobs], dtype=torch.float64)
    assert near(score.tokens, exact)


def test_windows_cover_every_token_once_behind_enough_others() -> None:
    for length in (2, 3, 10, 57):
        for first in (0, 1, 5, length - 1):
            for window in (1, 4, 9, 100):
                for stride in {1, max(1, window // 2), window}:
                    scored = []
                    for start, end, begin in cut_windows(length, first, window, stride):
                        assert 0 <= start < begin < end <= length and end - start - 1 <= window
                        scored += range(begin, end)
                        assert all(p - start >= min(p, window - stride + 1) for p in range(begin, end))
                    assert scored == list(range(max(first, 1), length))


def test_a_text_beyond_the_context_is_scored_in_windows(model: GlmMoeDsa, tokenizer: Tokenizer) -> None:
    llm = LLM(model, tokenizer=tokenizer, cache_tokens=512, max_context=24)
    ids = tokenizer.encode(TEXT)
    calls = list[tuple[int, int]]()
    score = llm.score(TEXT, progress=lambda done, total: calls.append((done, total)))
    assert (score.window, score.stride) == (24, 12) and score.windows == len(cut_windows(len(ids), 0, 24, 12)) > 1
    assert calls[-1][0] == calls[-1][1] and [done for done, _ in calls] == sorted({done for done, _ in calls})
    for start, end, first in cut_windows(len(ids), 0, 24, 12):
        table = expected(model, ids[start : end - 1])
        exact = [float(table[p - start - 1, ids[p]]) for p in range(first, end)]
        assert near(score.tokens[first:end], torch.tensor(exact, dtype=torch.float64))
    assert llm.score(TEXT, window=8, stride=3).windows > score.windows


def test_refusals(model: GlmMoeDsa, tokenizer: Tokenizer) -> None:
    llm = LLM(model, tokenizer=tokenizer, cache_tokens=512, max_context=24)
    for wrong, words in (
        ({"text": ""}, "text is empty"),
        ({"text": [5]}, "one token with nothing before it"),
        ({"text": [5, 999]}, "text, position 1: token id 999 is out of range"),
        ({"text": "x y", "window": 25}, "window is 25; expected an integer from 1 to 24"),
        ({"text": "x y", "window": 4, "stride": 5}, "stride is 5; expected an integer from 1 to 4"),
    ):
        with pytest.raises(ValueError, match=words):
            llm.score(**wrong)  # type: ignore[arg-type]
    assert LLM(model, cache_tokens=64).score([5, 6, 7]).bits_per_byte is None
    broken = GlmMoeDsa(model.config).initialise(0).eval()
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = math.nan
    llm = LLM(broken, tokenizer=tokenizer, cache_tokens=64)
    with pytest.raises(ValueError, match="check the weights for NaN"):
        llm.score(TEXT[:20])
    assert llm.engine.allocator.num_free == llm.cache.num_blocks
