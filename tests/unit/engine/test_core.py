"""The engine on models of exact arithmetic: the same tokens under every schedule, clean failures and ends."""

import itertools
import random

import pytest

from indexshare.engine.core import Engine, Generation
from indexshare.engine.outputs import CompletionOutput
from indexshare.engine.params import SamplingParams
from tests.unit.engine.fake_model import TINY, BrokenModel, HashModel, make_engine

LENGTHS = [3, 61, 17, 40, 8, 25, 1, 33]
PARAMS = [
    SamplingParams(max_tokens=20 + i, temperature=0.0 if i % 2 else 1.0, top_k=i, seed=i, ignore_eos=True)
    for i in range(len(LENGTHS))
]


def prompts() -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(TINY.vocab_size) for _ in range(n)] for n in LENGTHS]


def run(engine: Engine, generations: list[Generation]) -> list[CompletionOutput]:
    """Step to the end, checking the books after every step."""
    while not all(g.finished for g in generations):
        engine.step()
        engine.scheduler.check_integrity()
    assert engine.allocator.num_free == engine.allocator.num_blocks
    assert not engine.has_work
    return [g.output for g in generations if g.output is not None]


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    """Each request by itself, in one chunk, in a cache with room to spare."""
    found = []
    for ids, params in zip(prompts(), PARAMS, strict=True):
        engine = make_engine(num_blocks=1, block_size=128)
        found += [out.token_ids for out in run(engine, [engine.submit(ids, params)])]
    return found


@pytest.mark.parametrize(
    ("num_blocks", "block_size", "token_budget", "max_running"),
    [(128, 4, 64, 64), (128, 4, 7, 64), (21, 4, 32, 64), (86, 1, 1, 64), (24, 4, 5, 3), (11, 8, 1000, 2)],
)
def test_no_schedule_changes_a_token(
    alone: list[list[int]], num_blocks: int, block_size: int, token_budget: int, max_running: int
) -> None:
    model = HashModel()
    engine = make_engine(
        model,
        num_blocks=num_blocks,
        block_size=block_size,
        token_budget=token_budget,
        max_running=max_running,
    )
    generations = [engine.submit(ids, p) for ids, p in zip(prompts(), PARAMS, strict=True)]
    outputs = run(engine, generations)
    assert [out.token_ids for out in outputs] == alone
    assert max(model.rows_per_step) <= token_budget


def test_a_small_cache_preempts_and_scatters(alone: list[list[int]]) -> None:
    engine = make_engine(num_blocks=42, block_size=2)
    generations = [engine.submit(ids, p) for ids, p in zip(prompts(), PARAMS, strict=True)]
    scattered = 0
    while engine.has_work:
        engine.step()
        engine.scheduler.check_integrity()
        scattered += any(not request.table.is_run for request in engine.scheduler.requests)
    outputs = run(engine, generations)
    assert sum(out.stats.preemptions for out in outputs) > 0
    assert scattered > 0
    assert [out.token_ids for out in outputs] == alone


def test_late_arrivals_and_aborts_do_not_disturb_others(alone: list[list[int]]) -> None:
    engine = make_engine(num_blocks=60)
    generations: list[Generation] = []
    for number, (ids, params) in enumerate(zip(prompts(), PARAMS, strict=True)):
        generations.append(engine.submit(ids, params))
        for _ in range(number % 3):
            engine.step()
        if number == 4:
            engine.abort(generations[1])
    outputs = run(engine, generations)
    assert outputs[1].finish_reason == "abort"
    assert outputs[1].token_ids == alone[1][: len(outputs[1].token_ids)]
    kept = [i for i in range(len(LENGTHS)) if i != 1]
    assert [outputs[i].token_ids for i in kept] == [alone[i] for i in kept]


def test_the_end_of_text_id_and_stop_ids_end_a_generation(alone: list[list[int]]) -> None:
    ids, tokens = prompts()[1], alone[1]
    at = next(i for i, t in enumerate(tokens) if i > 2 and t not in tokens[:i])
    stop = SamplingParams(max_tokens=21, temperature=0, stop_token_ids=(tokens[at],), ignore_eos=True)
    engine = make_engine()
    [out] = run(engine, [engine.submit(ids, stop)])
    assert (out.token_ids, out.finish_reason) == (tokens[: at + 1], "stop")
    model = HashModel(TINY.replace(eos_token_id=(250, tokens[at])))
    engine = make_engine(model)
    greedy = SamplingParams(max_tokens=21, temperature=0)
    [out] = run(engine, [engine.submit(ids, greedy)])
    assert (out.token_ids, out.finish_reason) == (tokens[: at + 1], "stop")
    assert out.stats.completion_tokens == at + 1


@pytest.mark.parametrize("full_attention_below", [0, 5, 50, 10**9])
def test_statistics_add_up(full_attention_below: int) -> None:
    engine = make_engine(token_budget=13, full_attention_below=full_attention_below)
    generations = [engine.submit(ids, p) for ids, p in zip(prompts(), PARAMS, strict=True)]
    plan, limit = TINY.share_plan, max(TINY.index_topk, full_attention_below)
    for ids, params, out in zip(prompts(), PARAMS, run(engine, generations), strict=True):
        stats = out.stats
        computed = range(1, len(ids) + params.max_tokens)  # contexts of the computed queries
        beyond = sum(context > limit for context in computed)
        assert stats.prompt_tokens == len(ids)
        assert stats.completion_tokens == len(out.token_ids) == params.max_tokens
        assert stats.index_passes_run == len(plan.full_layers) * beyond
        assert stats.index_passes_run + stats.index_passes_saved == plan.num_layers * beyond
        assert stats.tokens_available == sum(computed)
        assert stats.tokens_attended == sum(c if c <= limit else TINY.index_topk for c in computed)
        assert stats.first_token_s == pytest.approx(stats.queue_s + stats.prefill_s)
        assert stats.prefill_s > 0
        assert stats.decode_s > 0


def test_a_failing_step_can_be_repeated(alone: list[list[int]]) -> None:
    model = BrokenModel()
    engine = make_engine(model, token_budget=20)
    generations = [engine.submit([1, 2, 3], SamplingParams(max_tokens=9, temperature=0, ignore_eos=True))]
    tokens = []
    for attempt in itertools.count():
        model.failure = KeyboardInterrupt if attempt % 2 else None
        if attempt % 2:
            with pytest.raises(KeyboardInterrupt):
                engine.step()
        else:
            engine.step()
        tokens += [c.token_id for c in generations[0].chunks]
        generations[0].chunks.clear()
        if generations[0].finished:
            break
    reference = make_engine()
    greedy = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)
    [expected] = run(reference, [reference.submit([1, 2, 3], greedy)])
    assert tokens == expected.token_ids
    assert generations[0].output is not None
    assert generations[0].output.token_ids == expected.token_ids


def test_nan_logits_end_only_the_request_concerned() -> None:
    engine = make_engine(BrokenModel())
    params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True, stop_token_ids=(99,))
    good, bad = engine.submit([1, 2], params, "prompt 0"), engine.submit([5, 99], params, "prompt 1")
    run(engine, [good, bad])
    assert good.error is None
    assert str(bad.error).startswith("prompt 1: the logits after 2 tokens are NaN or infinite; check the weights")
    assert bad.output is not None
    assert bad.output.finish_reason == "abort"


def test_logprobs_come_with_every_token() -> None:
    engine = make_engine()
    params = SamplingParams(max_tokens=6, temperature=0, logprobs=TINY.vocab_size, ignore_eos=True)
    generation = engine.submit([4, 5], params)
    other = engine.submit([4, 6], SamplingParams(max_tokens=6, temperature=0))
    [out, plain] = run(engine, [generation, other])
    assert plain.logprobs is None
    assert out.logprobs is not None
    assert [entry.token_id for entry in out.logprobs] == out.token_ids
    for entry in out.logprobs:
        assert entry.top[0] == (entry.token_id, entry.logprob)
        assert len(entry.top) == TINY.vocab_size
    with pytest.raises(ValueError, match="logprobs is 257; the vocabulary has only 256"):
        engine.submit([1], SamplingParams(logprobs=257))
