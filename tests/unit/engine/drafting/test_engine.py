"""Drafts in the engine, on models of exact arithmetic: they change the number of steps and nothing else."""

import random
from collections.abc import Sequence

import pytest
from torch import Tensor

from indexshare.engine.core import Engine, Generation
from indexshare.engine.drafting.acceptance import Proposal
from indexshare.engine.drafting.base import Drafter, Wish
from indexshare.engine.drafting.lookup import LookupDrafter
from indexshare.engine.drafting.policy import Fixed, Measured
from indexshare.engine.drafting.rounds import Drafting
from indexshare.engine.outputs import Chunk, CompletionOutput
from indexshare.engine.params import SamplingParams
from tests.unit.engine.fake_model import TINY, BrokenModel, HashModel, ScriptModel, make_engine

LENGTHS = [3, 61, 17, 40, 8, 25, 1, 33]
SETTINGS: list[dict] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 0.0, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    {"temperature": 0.7, "presence_penalty": 0.4, "top_p": 0.9},
]
PARAMS = [
    SamplingParams(max_tokens=20 + i, seed=i, ignore_eos=True, logprobs=i % 3 or None, **SETTINGS[i % len(SETTINGS)])
    for i in range(len(LENGTHS))
]


def prompts() -> list[list[int]]:
    rng = random.Random(3)
    return [[rng.randrange(TINY.vocab_size) for _ in range(n)] for n in LENGTHS]


class Knowing(Drafter):
    """Knows what each request will say, and gets every so many tokens wrong."""

    name = "knowing"

    def __init__(self, texts: Sequence[tuple[list[int], list[int]]], wrong_every: int) -> None:
        self.texts = {tuple(prompt): [*prompt, *said] for prompt, said in texts}
        self.wrong_every = wrong_every

    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        return [self.of(wish) for wish in wishes]

    def of(self, wish: Wish) -> Proposal:
        known, at = self.texts[tuple(wish.request.prompt_ids)], len(wish.request.tokens)
        right = known[at : at + wish.most]
        wrong = [(t + 1) % TINY.vocab_size if (at + n) % self.wrong_every == 0 else t for n, t in enumerate(right)]
        return Proposal(wrong, None, self.name)


def run(engine: Engine, generations: list[Generation]) -> list[CompletionOutput]:
    while not all(g.finished for g in generations):
        engine.step()
        engine.scheduler.check_integrity()
    assert engine.allocator.num_free == engine.allocator.num_blocks
    return [g.output for g in generations if g.output is not None]


def drafting(plain: list[CompletionOutput], count: int, wrong_every: int = 4) -> Drafting:
    texts = [(ids, out.token_ids) for ids, out in zip(prompts(), plain, strict=True)]
    return Drafting([Knowing(texts, wrong_every)], Fixed(count))


@pytest.fixture(scope="module")
def plain() -> list[CompletionOutput]:
    """Each request by itself, without drafts."""
    found = []
    for ids, params in zip(prompts(), PARAMS, strict=True):
        engine = make_engine(num_blocks=1, block_size=128)
        found += run(engine, [engine.submit(ids, params)])
    return found


def same(outputs: list[CompletionOutput], expected: list[CompletionOutput]) -> bool:
    assert [out.token_ids for out in outputs] == [out.token_ids for out in expected]
    assert [out.logprobs for out in outputs] == [out.logprobs for out in expected]
    return [out.finish_reason for out in outputs] == [out.finish_reason for out in expected]


@pytest.mark.parametrize("count", [1, 2, 4, 7])
@pytest.mark.parametrize(
    ("num_blocks", "block_size", "token_budget", "max_running"),
    [(128, 4, 64, 64), (128, 4, 9, 64), (21, 4, 32, 64), (86, 1, 11, 3), (11, 8, 1000, 2)],
)
def test_drafts_change_no_token_under_any_schedule(
    plain: list[CompletionOutput], count: int, num_blocks: int, block_size: int, token_budget: int, max_running: int
) -> None:
    model = HashModel()
    engine = make_engine(
        model, num_blocks=num_blocks, block_size=block_size, token_budget=token_budget,
        max_running=max_running, drafting=drafting(plain, count),
    )  # fmt: skip
    outputs = run(engine, [engine.submit(ids, p) for ids, p in zip(prompts(), PARAMS, strict=True)])
    assert same(outputs, plain)
    assert max(model.rows_per_step) <= token_budget
    for out in outputs:
        stats = out.stats
        assert 0 < stats.accepted_tokens <= stats.drafted_tokens
        assert stats.drafted_by_place[0] == stats.draft_rounds
        assert sum(stats.drafted_by_place) == stats.drafted_tokens
        assert sum(stats.accepted_by_place) == stats.accepted_tokens
        assert stats.verify_s > 0


def test_right_drafts_save_steps(plain: list[CompletionOutput]) -> None:
    engine = make_engine(num_blocks=1, block_size=128, drafting=drafting(plain, 4, wrong_every=10**9))
    generation = engine.submit(prompts()[0], PARAMS[0])
    [out] = run(engine, [generation])
    assert same([out], plain[:1])
    # The prompt's step gives one token; three rounds give five each; the last has room for three drafts and one more.
    assert out.stats.draft_rounds == 4
    assert out.stats.accepted_by_place == [4, 4, 4, 3]
    assert out.stats.accepted_length == pytest.approx(1 + 15 / 4)
    assert [chunk.drafted for chunk in generation.chunks] == [False] + 3 * [*[True] * 4, False] + [*[True] * 3, False]


def test_lookups_in_a_text_that_repeats(plain: list[CompletionOutput]) -> None:
    script = [5, 6, 7, 8] * 6
    one, many = [
        make_engine(ScriptModel(TINY, script), drafting=Drafting([LookupDrafter()], Fixed(n)) if n else None)
        for n in (0, 5)
    ]
    params = SamplingParams(max_tokens=24, temperature=0)
    [expected], [out] = (run(engine, [engine.submit([3], params)]) for engine in (one, many))
    assert out.token_ids == expected.token_ids == script
    assert out.stats.accepted_tokens >= 12
    assert out.stats.draft_rounds <= 4


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_end_of_text_and_stop_ids_in_the_middle_of_accepted_drafts(
    plain: list[CompletionOutput], count: int
) -> None:
    ids, tokens = prompts()[0], plain[0].token_ids
    for at in range(2, 12):
        if tokens[at] in tokens[:at]:
            continue
        stop = SamplingParams(max_tokens=20, temperature=0, stop_token_ids=(tokens[at],), ignore_eos=True)
        engine = make_engine(drafting=drafting(plain, count, wrong_every=10**9))
        generation = engine.submit(ids, stop)
        [out] = run(engine, [generation])
        assert (out.token_ids, out.finish_reason) == (tokens[: at + 1], "stop")
        assert len(generation.chunks) == at + 1
        assert generation.chunks[-1].output is out
        engine = make_engine(
            HashModel(TINY.replace(eos_token_id=(tokens[at],))), drafting=drafting(plain, count, wrong_every=10**9)
        )
        [out] = run(engine, [engine.submit(ids, SamplingParams(max_tokens=20, temperature=0))])
        assert (out.token_ids, out.finish_reason) == (tokens[: at + 1], "stop")


@pytest.mark.parametrize("max_tokens", range(1, 9))
def test_max_tokens_and_the_context_are_kept(plain: list[CompletionOutput], max_tokens: int) -> None:
    ids = prompts()[0]
    engine = make_engine(
        num_blocks=len(ids) + max_tokens - 1, block_size=1, drafting=drafting(plain, 7, wrong_every=10**9),
        max_context=len(ids) + max_tokens,
    )  # fmt: skip
    [out] = run(engine, [engine.submit(ids, SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True))])
    assert (out.token_ids, out.finish_reason) == (plain[0].token_ids[:max_tokens], "length")


class Answering(Drafter):
    """Drafts the same tokens each time."""

    name = "answering"

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        return [Proposal(self.tokens[: wish.most], None, self.name) for wish in wishes]


def test_logits_that_break_behind_a_wrong_draft_matter_to_nobody() -> None:
    """The model gives NaN behind token 99, which a draft contains and the text does not."""
    params = SamplingParams(max_tokens=9, temperature=0, ignore_eos=True)
    expected = make_engine(BrokenModel())
    [right] = run(expected, [expected.submit([1, 2, 3], params)])
    assert 99 not in right.token_ids
    engine = make_engine(BrokenModel(), drafting=Drafting([Answering([99, 5, 6])], Fixed(3)))
    [out] = run(engine, [engine.submit([1, 2, 3], params)])
    assert out.token_ids == right.token_ids
    assert out.stats.accepted_tokens == 0


def test_logits_that_break_behind_accepted_drafts_are_an_error_there() -> None:
    script = [5, 6, 99, 8, 9]

    class Breaking(ScriptModel):
        def logits(self, hidden: Tensor) -> Tensor:
            found = super().logits(hidden)
            found[hidden[:, 0] >= 3] = float("nan")  # behind token 99, at position 3
            return found

    engine = make_engine(Breaking(TINY, script), drafting=Drafting([Answering([6, 99, 8])], Fixed(3)))
    generation = engine.submit([1], SamplingParams(max_tokens=9, temperature=0))
    while not generation.finished:
        engine.step()
    assert isinstance(generation.error, ValueError)
    assert "the logits after 4 tokens are NaN or infinite" in str(generation.error)
    assert [chunk.token_id for chunk in generation.chunks] == [5, 6, 99, None]


def test_a_failing_step_can_be_repeated(plain: list[CompletionOutput]) -> None:
    model = BrokenModel()
    engine = make_engine(model, token_budget=20, drafting=drafting(plain, 4))
    generations = [engine.submit(ids, p) for ids, p in zip(prompts(), PARAMS, strict=True)]
    attempt = 0
    while engine.has_work:
        model.failure = KeyboardInterrupt if attempt % 3 == 1 else None
        attempt += 1
        try:
            engine.step()
        except KeyboardInterrupt:
            continue
    outputs = [g.output for g in generations if g.output is not None]
    fine = [n for n, out in enumerate(plain) if 99 not in [*prompts()[n], *out.token_ids]]
    assert len(fine) > 3
    assert [outputs[n].token_ids for n in fine] == [plain[n].token_ids for n in fine]


def test_what_pays_is_measured_and_changes_nothing(plain: list[CompletionOutput]) -> None:
    texts = [(ids, out.token_ids) for ids, out in zip(prompts(), plain, strict=True)]
    engine = make_engine(drafting=Drafting([Knowing(texts, 4), LookupDrafter()], Measured()))
    outputs = run(engine, [engine.submit(ids, p) for ids, p in zip(prompts(), PARAMS, strict=True)])
    assert same(outputs, plain)


def test_streams_give_one_chunk_per_token(plain: list[CompletionOutput]) -> None:
    engine = make_engine(drafting=drafting(plain, 4))
    generation = engine.submit(prompts()[1], PARAMS[1])
    chunks: list[Chunk] = []
    while not generation.finished:
        engine.step()
        chunks += generation.chunks
        generation.chunks.clear()
    assert [chunk.token_id for chunk in chunks] == plain[1].token_ids
    assert [chunk.output is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert sum(chunk.drafted for chunk in chunks) == chunks[-1].output.stats.accepted_tokens
