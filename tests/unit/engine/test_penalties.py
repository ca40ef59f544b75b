"""Penalties for tokens that occurred: against the plain reference and transformers, in batches and after preemption."""

import random

import pytest
import torch
from torch import Tensor

from indexshare.cache.paged import PagedCache
from indexshare.config import preset
from indexshare.engine.core import Engine
from indexshare.engine.params import SamplingParams
from indexshare.engine.penalties import SeenTokens
from indexshare.engine.sampler import Draw, sample, uniform
from indexshare.engine.sampler_reference import choose, penalised, probabilities
from indexshare.model.glm import GlmMoeDsa

SETTINGS = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.5},
    {"presence_penalty": 0.7},
    {"frequency_penalty": 0.3},
    {"frequency_penalty": -2.0, "presence_penalty": 2.0},
    {"repetition_penalty": 1.1, "presence_penalty": -0.4, "frequency_penalty": 0.9},
]


def texts(seed: int, vocab: int) -> tuple[Tensor, list[int], list[int]]:
    rng = random.Random(seed)
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 4
    logits[3] = 0.0
    few = [rng.randrange(vocab) for _ in range(6)] + [3]
    return logits, rng.choices(few, k=9), rng.choices([*few, vocab - 1], k=seed % 14)


def seen(params: SamplingParams, prompt: list[int], generated: list[int]) -> SeenTokens:
    found = SeenTokens(params, len(prompt))
    found.update([*prompt, *generated])
    return found


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_bit_for_bit_as_the_reference(settings: dict) -> None:
    params = SamplingParams(**settings)
    for seed in range(30):
        logits, prompt, generated = texts(seed, 40)
        before = logits.clone()
        found = seen(params, prompt, generated).penalise(logits)
        assert found.tolist() == penalised(logits.tolist(), params, prompt, generated)
        assert torch.equal(logits, before), "the logits are those of the model, log-probabilities are read from them"


def test_a_sequence_that_grows_is_the_same_as_one_that_is_there() -> None:
    params = SamplingParams(**SETTINGS[-1])
    logits, prompt, generated = texts(13, 40)
    growing = SeenTokens(params, len(prompt))
    for length in range(len(generated) + 1):
        so_far = [*prompt, *generated[:length]]
        growing.update(so_far)
        growing.update(so_far)  # a step that failed is tried again
        assert torch.equal(growing.penalise(logits), seen(params, prompt, generated[:length]).penalise(logits))


@pytest.mark.parametrize("penalty", [1.3, 0.7, 1.0001])
def test_repetition_is_that_of_transformers(penalty: float) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    theirs = process.RepetitionPenaltyLogitsProcessor(penalty=penalty)
    for seed in range(10):
        logits, prompt, generated = texts(seed, 200)
        ours = seen(SamplingParams(repetition_penalty=penalty), prompt, generated).penalise(logits)
        assert torch.equal(ours, theirs(torch.tensor([[*prompt, *generated]]), logits[None])[0])


def test_the_definitions_in_numbers() -> None:
    logits = torch.tensor([2.0, -2.0, 1.0, 1.0])
    both = seen(SamplingParams(repetition_penalty=2.0), [0], [1]).penalise(logits)
    assert both.tolist() == [1.0, -4.0, 1.0, 1.0], "towards less likely on either side of zero; prompt and output"
    output = seen(SamplingParams(presence_penalty=0.5, frequency_penalty=0.25), [0, 0], [2, 2, 3]).penalise(logits)
    assert output.tolist() == [2.0, -2.0, 0.0, 0.25], "the output alone"


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.8, "top_k": 9}, {"top_p": 0.7}], ids=str)
def test_the_choice_is_made_after_the_penalty(settings: dict, sampling: dict) -> None:
    params = SamplingParams(**settings, **sampling)
    for seed in range(8):
        logits, prompt, generated = texts(seed, 40)
        expected = probabilities(penalised(logits.tolist(), params, prompt, generated), params)
        rows = torch.stack([logits, logits])
        draws = [Draw(params, 5, seed, seen(params, prompt, generated)), Draw(SamplingParams(temperature=0), 5, seed)]
        tokens = sample(rows, draws)
        assert tokens == [choose(expected, uniform(5, seed)), int(logits.argmax())], "only the row that asks for it"


def test_overflow_stays_finite() -> None:
    logits = torch.tensor([3e38, -3e38, 1.0, 0.0])
    for penalty in (1e-30, 1e30):
        params = SamplingParams(repetition_penalty=penalty, presence_penalty=2.0)
        found = seen(params, [0], [1]).penalise(logits)
        assert found.isfinite().all()
        assert found.tolist() == penalised(logits.tolist(), params, [0], [1])


@pytest.fixture(scope="module")
def model() -> GlmMoeDsa:
    return GlmMoeDsa(preset("tiny").replace(vocab_size=64, dtype="float32")).initialise(0).eval()


def run(model: GlmMoeDsa, prompts: list[list[int]], params: list[SamplingParams], blocks: int) -> list[list[int]]:
    engine = Engine(model, PagedCache(model.config, blocks, 16, torch.float32, torch.device("cpu")))
    generations = [engine.submit(prompt, chosen) for prompt, chosen in zip(prompts, params, strict=True)]
    while engine.has_work:
        engine.step()
    assert sum(g.request.stats.preemptions for g in generations) > 0 or blocks > 20
    return [g.output.token_ids for g in generations if g.output is not None]


def test_alone_in_a_batch_and_after_preemption_the_same(model: GlmMoeDsa) -> None:
    rng = random.Random(0)
    prompts = [[rng.randrange(64) for _ in range(20)] for _ in range(4)]
    params = [
        SamplingParams(max_tokens=40, seed=n, temperature=0.0 if n == 0 else 1.0, ignore_eos=True, **settings)
        for n, settings in enumerate([*SETTINGS[:1], {}, *SETTINGS[4:]])
    ]
    together = run(model, prompts, params, blocks=64)
    assert together == [run(model, [p], [s], blocks=64)[0] for p, s in zip(prompts, params, strict=True)]
    assert together == run(model, prompts, params, blocks=10)
    plain = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    assert run(model, prompts[:1], [plain], blocks=64)[0] != together[0]
    strong = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True, repetition_penalty=1e6)
    (ids,) = run(model, prompts[:1], [strong], blocks=64)
    assert len({*ids, *prompts[0]}) == len(set(prompts[0])) + min(len(ids), 64 - len(set(prompts[0])))
