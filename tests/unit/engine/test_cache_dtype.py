"""`LLM(cache_dtype=...)`: what is reserved, text that batches and preemption do not change, names refused at once."""

import random
from itertools import pairwise

import pytest
import torch

from indexshare.cache.codecs import codecs_by_stream, row_bytes
from indexshare.config import preset
from indexshare.engine import capacity
from indexshare.engine.llm import LLM
from indexshare.engine.outputs import CompletionOutput
from indexshare.engine.params import SamplingParams
from indexshare.model.glm import GlmMoeDsa
from indexshare.planner.memory import cache_bytes_per_token

CONFIG = preset("tiny")  # index_topk 8
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
KINDS = [("int8", None), ("fp8", None), ("bfloat16", "fp8"), (None, "int8"), ("float32", "bfloat16")]


@pytest.fixture(scope="module")
def model() -> GlmMoeDsa:
    return GlmMoeDsa(CONFIG).initialise(5).eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(8)
    return [[rng.randrange(CONFIG.vocab_size) for _ in range(n)] for n in (5, 160, 9, 64, 31)]


def tokens(outputs: list[CompletionOutput]) -> list[list[int]]:
    return [out.token_ids for out in outputs]


@pytest.mark.parametrize(("everything", "keys"), KINDS)
def test_batch_chunks_and_preemption_change_nothing(
    model: GlmMoeDsa, prompts: list[list[int]], everything: str | None, keys: str | None
) -> None:
    def llm(**settings: int) -> LLM:
        return LLM(model, cache_dtype=everything, index_cache_dtype=keys, **settings)

    alone = [llm(cache_tokens=256).generate(ids, GREEDY)[0] for ids in prompts]
    for chunk, cache_tokens, max_batch in ((2048, 4096, 64), (7, 4096, 64), (64, 256, 64), (33, 512, 2)):
        batch = llm(cache_tokens=cache_tokens, prefill_chunk=chunk, max_batch=max_batch)
        assert tokens(batch.generate(prompts, GREEDY)) == tokens(alone)


@pytest.mark.parametrize(("everything", "keys"), [(None, None), *KINDS])
def test_the_cache_takes_the_bytes_that_its_codecs_take(
    model: GlmMoeDsa, everything: str | None, keys: str | None
) -> None:
    llm = LLM(model, cache_tokens=640, cache_dtype=everything, index_cache_dtype=keys)
    codecs = codecs_by_stream(CONFIG, everything, keys)
    assert llm.cache.nbytes == 640 * cache_bytes_per_token(CONFIG, row_bytes=row_bytes(codecs, torch.float32))


def test_more_tokens_fit_where_they_take_less(model: GlmMoeDsa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "free_memory", lambda device: 4_000_000)
    sizes = [LLM(model, cache_dtype=name).cache.num_tokens for name in ("float32", "bfloat16", "int8")]
    assert all(more > 1.2 * less for less, more in pairwise(sizes))


def test_types_may_be_torch_s(model: GlmMoeDsa) -> None:
    assert LLM(model, cache_tokens=64, cache_dtype=torch.bfloat16).cache.nbytes == 64 * cache_bytes_per_token(CONFIG, 2)


@pytest.mark.parametrize("argument", ["cache_dtype", "index_cache_dtype"])
def test_unknown_names_are_refused_before_anything_is_loaded(argument: str) -> None:
    with pytest.raises(
        ValueError, match=f"{argument} is 'int4'; did you mean 'int8'\\? expected one of float32, bfloat16"
    ):
        LLM("no such model", **{argument: "int4"})


@pytest.mark.parametrize("drafter", ["lookup", "mtp"])
def test_drafting_says_the_same_over_a_cache_of_few_bits(
    model: GlmMoeDsa, prompts: list[list[int]], drafter: str
) -> None:
    plain = LLM(model, cache_tokens=1024, cache_dtype="int8")
    drafting = LLM(model, cache_tokens=1024, cache_dtype="int8", draft_tokens=3, drafter=drafter)
    assert tokens(drafting.generate(prompts, GREEDY)) == tokens(plain.generate(prompts, GREEDY))
    assert drafting.cache.nbytes >= plain.cache.nbytes
