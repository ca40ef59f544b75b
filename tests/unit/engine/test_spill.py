"""`LLM(cache_memory=..., spill=...)`: the same to the last bit as with everything in memory; failures end the requests
concerned and nothing else."""

import errno
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from indexshare.cache.spilled import SpilledCache
from indexshare.config import preset
from indexshare.config.arguments import as_bytes
from indexshare.engine.core import Generation
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.model.glm import GlmMoeDsa
from tests.unit.model.test_grouped import grouped

CONFIG = preset("tiny")  # index_topk 8
GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True, logprobs=2)
DRAWN = SamplingParams(max_tokens=24, temperature=0.8, seed=3, ignore_eos=True, logprobs=2)


@pytest.fixture(scope="module")
def model() -> GlmMoeDsa:
    return GlmMoeDsa(CONFIG).initialise(5).eval()


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = random.Random(8)
    return [[rng.randrange(CONFIG.vocab_size) for _ in range(n)] for n in (5, 160, 9, 64, 31, 400)]


def least_memory(model: GlmMoeDsa, settings: dict[str, Any], folder: Path) -> int:
    with pytest.raises(ValueError, match="needs at least") as caught:
        LLM(model, **settings, cache_memory=1, spill=folder)
    found = re.search(r"at least ([\d,]+)", str(caught.value))
    assert found is not None
    return int(found[1].replace(",", ""))


def spilling(model: GlmMoeDsa, settings: dict[str, Any], folder: Path, share: float = 1.0) -> LLM:
    llm = LLM(model, **settings, cache_memory=int(share * least_memory(model, settings, folder)), spill=folder)
    assert isinstance(llm.cache, SpilledCache)
    return llm


def check(llm: LLM) -> None:
    llm.engine.scheduler.check_integrity()
    assert llm.engine.allocator.num_free == llm.engine.allocator.num_blocks


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"cache_tokens": 512},  # requests make room for each other
        {"cache_dtype": "int8"},
        {"cache_dtype": "bfloat16", "index_cache_dtype": "fp8"},
        {"draft_tokens": 3, "drafter": "both"},
        {"draft_tokens": 2, "drafter": "mtp", "cache_tokens": 512},
        {"prefill_chunk": 7, "max_batch": 2},
        {"full_attention_below": 20, "prefix_cache": False},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "params", [pytest.param(GREEDY, marks=pytest.mark.slow, id="greedy"), pytest.param(DRAWN, id="drawn")]
)
def test_the_same_to_the_last_bit(
    model: GlmMoeDsa, prompts: list[list[int]], tmp_path: Path, settings: dict[str, Any], params: SamplingParams
) -> None:
    settings = {"cache_tokens": 2048, "prefill_chunk": 32, "max_batch": 4, "max_context": 480} | settings
    plain, llm = LLM(model, **settings), spilling(model, settings, tmp_path)
    for _ in range(2):  # the second time with what is known of the first
        expected = plain.generate(prompts, params)
        for output, wanted in zip(llm.generate(prompts, params), expected, strict=True):
            assert (output.token_ids, output.logprobs) == (wanted.token_ids, wanted.logprobs)
    check(llm)
    assert list(tmp_path.iterdir()) == []


def test_grouped_queries(prompts: list[list[int]], tmp_path: Path) -> None:
    """Keys and values are two streams of a layer, which are fetched together."""
    model = GlmMoeDsa(grouped()).initialise(3).eval()
    settings = {"cache_tokens": 2048, "prefill_chunk": 32, "max_context": 480}
    expected = LLM(model, **settings).generate(prompts, GREEDY)
    llm = spilling(model, settings, tmp_path)
    for output, wanted in zip(llm.generate(prompts, GREEDY), expected, strict=True):
        assert (output.token_ids, output.logprobs) == (wanted.token_ids, wanted.logprobs)
    assert llm.cache.counts.bytes_read > 0  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="but the model attends to every token; leave it out"):
        LLM(GlmMoeDsa(grouped(selects=False)).eval(), cache_memory="1M", spill=tmp_path)


def test_statistics(model: GlmMoeDsa, prompts: list[list[int]], tmp_path: Path) -> None:
    settings = {"cache_tokens": 2048, "prefill_chunk": 32, "max_context": 480}
    stats = spilling(model, settings, tmp_path).generate(prompts[5], GREEDY)[0].stats
    assert 0 < stats.spill_found < stats.spill_rows and stats.spill_bytes_read > 0 and stats.spill_wait_s > 0
    assert stats.to_dict()["spill_hit_rate"] == stats.spill_hit_rate == stats.spill_found / stats.spill_rows
    plain = LLM(model, **settings).generate(prompts[5], GREEDY)[0].stats
    assert (plain.spill_rows, plain.spill_hit_rate) == (0, 1.0)


def test_saved_prefixes_pass_between_caches_of_both_kinds(
    model: GlmMoeDsa, prompts: list[list[int]], tmp_path: Path
) -> None:
    settings = {"cache_tokens": 1024, "prefill_chunk": 32, "max_context": 480, "cache_dir": tmp_path / "kept"}
    first = spilling(model, settings, tmp_path / "rows")
    expected = first.generate(prompts[5], GREEDY)[0]
    assert first.engine.saved is not None
    first.engine.saved.flush()
    for llm in (spilling(model, settings, tmp_path / "rows"), LLM(model, **settings)):
        output = llm.generate(prompts[5], GREEDY)[0]
        assert (output.token_ids, output.logprobs) == (expected.token_ids, expected.logprobs)
        assert output.stats.cached_tokens > 300


def run(llm: LLM, generations: list[Generation]) -> None:
    while not all(g.finished for g in generations):
        llm.engine.step()
        llm.engine.scheduler.check_integrity()


@pytest.mark.parametrize("call", ["preadv", "pwrite"])
def test_a_failure_ends_the_requests_concerned_alone(
    model: GlmMoeDsa, prompts: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The rows of one request's blocks cannot be read, or not written; the others go on, and so do later ones."""
    settings = {"cache_tokens": 2048, "prefill_chunk": 32, "max_context": 480, "max_batch": 4}
    expected = LLM(model, **settings).generate(prompts, GREEDY)
    llm = spilling(model, settings, tmp_path)
    generations = [llm.engine.submit(ids, GREEDY, f"prompt {n}") for n, ids in enumerate(prompts)]
    while generations[1].request.computed < 100:
        llm.engine.step()
    bad = generations[1].request.table.ids[0 if call == "preadv" else 2]
    real, sizes = getattr(os, call), {group.file_number: group.row_bytes for group in llm.cache.groups.values()}  # type: ignore[attr-defined]

    def broken(fd: int, data: Any, offset: int) -> int:
        count = sum(map(len, data)) if call == "preadv" else len(data)
        slots = range(offset // sizes[fd], (offset + count) // sizes[fd]) if fd in sizes else range(0)
        if not generations[1].finished and any(slot // 64 == bad for slot in slots):
            raise OSError(errno.EIO if call == "preadv" else errno.ENOSPC, "broken")
        return real(fd, data, offset)

    monkeypatch.setattr("indexshare.cache.spill._GAP_BYTES", 0)
    monkeypatch.setattr(os, call, broken)
    run(llm, generations)
    error = generations[1].error
    assert isinstance(error, OSError) and str(error).startswith("prompt 1: rows of the cache in ")
    assert "cannot be read back: broken" in str(error) or "cannot be written: broken" in str(error)
    for n in (0, 2, 3, 4, 5):
        output = generations[n].output
        assert output is not None and output.token_ids == expected[n].token_ids
    check(llm)
    monkeypatch.setattr(os, call, real)
    assert [o.token_ids for o in llm.generate(prompts, GREEDY)] == [o.token_ids for o in expected]


def test_from_generate_it_is_an_error_of_the_system(
    model: GlmMoeDsa, prompts: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = spilling(model, {"cache_tokens": 1024, "prefill_chunk": 32, "max_context": 480}, tmp_path)

    def full(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(
            OSError, match=r"prompt: rows of the cache in .* cannot be written: no space left on device"
        ):
            llm.generate(prompts[5], GREEDY)
        with pytest.raises(OSError, match=r"rows of the cache in .* cannot be written"):
            llm.score(prompts[5])
    check(llm)
    assert len(llm.generate(prompts[5], GREEDY)[0].token_ids) == 24


def test_memory_alone_sets_the_tokens(model: GlmMoeDsa, tmp_path: Path) -> None:
    per_token = LLM(model, cache_tokens=64).cache.nbytes // 64
    llm = LLM(model, cache_memory=1000 * per_token)
    assert llm.cache.num_tokens == 960 and not isinstance(llm.cache, SpilledCache)
    assert not isinstance(
        LLM(model, cache_memory=1000 * per_token, cache_tokens=900, spill=tmp_path).cache, SpilledCache
    )
    large = LLM(model, cache_memory="1G", spill=tmp_path, max_context=100)
    assert large.cache.num_tokens == 448  # four contexts, which fit


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_memory": 10}, "cache_memory is 10 bytes, which hold 0 tokens and not a block of 64 tokens; raise it"),
        ({"cache_memory": "1M", "cache_tokens": 10**6}, "and not 1,000,000 tokens; raise it, or name a folder"),
        ({"cache_memory": "two"}, "cache_memory is 'two'; expected bytes such as 500M, 2G or 2147483648"),
        ({"cache_memory": 0}, 'cache_memory is 0; expected an integer, 1 or more, or a text such as "2G"'),
        ({"spill": "x"}, "spill is 'x', but cache_memory is not set; say how much memory to use"),
    ],
)
def test_mistakes_are_refused(model: GlmMoeDsa, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LLM(model, **settings)


def test_a_file_is_no_folder(model: GlmMoeDsa, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(ValueError, match="which cannot be a folder: file exists"):
        LLM(model, cache_tokens=100_000, cache_memory="50M", spill=tmp_path / "x")


@pytest.mark.parametrize(
    ("text", "size"), [("2G", 2 << 30), ("1.5 GiB", 3 << 29), ("500m", 500 << 20), ("77", 77), (5, 5)]
)
def test_sizes_in_words(text: str | int, size: int) -> None:
    assert as_bytes("x", text) == size
