"""The draft layer in the engine: anchors, poisoned slots, equal text, the law of sampled text."""

import itertools
import math
import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from indexshare.cache.paged import PagedCache
from indexshare.cache.view import InFlightView
from indexshare.config.layers import INDEX_KEYS
from indexshare.config.mla import LATENTS
from indexshare.engine.core import Engine
from indexshare.engine.drafting.acceptance import Proposal
from indexshare.engine.drafting.base import Wish
from indexshare.engine.drafting.build import build
from indexshare.engine.drafting.layer import LayerDrafter
from indexshare.engine.drafting.policy import Fixed
from indexshare.engine.drafting.rounds import Drafting
from indexshare.engine.llm import LLM
from indexshare.engine.outputs import CompletionOutput
from indexshare.engine.params import SamplingParams
from indexshare.engine.scheduler import Row
from indexshare.model.glm import GlmMoeDsa
from tests.unit.checkpoint.checkpoints import tiny_config

LENGTHS = [2, 9, 30, 50, 17]  # below and beyond the selection
TOPK = 12


@pytest.fixture(scope="module")
def model() -> GlmMoeDsa:
    """Random weights, large enough that the text varies; contexts of more than `TOPK` tokens are sparse."""
    config = tiny_config(index_topk=TOPK, vocab_size=64, initializer_range=0.25, eos_token_id=(63,))
    return GlmMoeDsa(config).initialise(5).eval()


def prompts(seed: int = 1) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(60) for _ in range(n)] for n in LENGTHS]


def greedy(max_tokens: int = 24) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)


def texts(outputs: Sequence[CompletionOutput]) -> list[list[int]]:
    return [out.token_ids for out in outputs]


@pytest.fixture(scope="module")
def plain(model: GlmMoeDsa) -> list[list[int]]:
    return texts(LLM(model, cache_tokens=4096).generate(prompts(), greedy()))


@pytest.mark.parametrize("drafter", ["lookup", "mtp", "both"])
@pytest.mark.parametrize("count", [1, 3, 7, "auto"])
def test_greedy_text_is_that_of_plain_decoding(
    model: GlmMoeDsa, plain: list[list[int]], drafter: str, count: int
) -> None:
    llm = LLM(model, cache_tokens=4096, draft_tokens=count, drafter=drafter)
    assert texts(llm.generate(prompts(), greedy())) == plain
    alone = [llm.generate([ids], greedy())[0].token_ids for ids in prompts()]
    assert alone == plain


@pytest.mark.parametrize("settings", [{"prefill_chunk": 7}, {"cache_tokens": 256}, {"max_batch": 2}], ids=str)
def test_chunks_and_small_batches(model: GlmMoeDsa, plain: list[list[int]], settings: dict) -> None:
    llm = LLM(model, draft_tokens=3, drafter="mtp", **({"cache_tokens": 4096} | settings))
    outputs = llm.generate(prompts() * 2, greedy())
    assert texts(outputs) == plain * 2
    assert sum(out.stats.drafted_tokens for out in outputs) > 0


def test_preempted_sequences_are_drafted_for_again(model: GlmMoeDsa, plain: list[list[int]]) -> None:
    cache = PagedCache(model.config, 30, 4, draft=True)
    engine = Engine(model, cache, drafting=build(3, "mtp", model, cache))
    generations = [engine.submit(ids, greedy()) for ids in prompts()]
    while engine.has_work:
        engine.step()
        engine.scheduler.check_integrity()
    outputs = [generation.output for generation in generations if generation.output is not None]
    assert texts(outputs) == plain
    assert sum(out.stats.preemptions for out in outputs) > 0
    assert all(out.stats.drafted_tokens > 0 for out in outputs)


class Watched(LayerDrafter):
    """Notes every proposal with the number of tokens it is for, and may poison what no later step should read."""

    poison = False

    def __init__(self, *args: object, **settings: object) -> None:
        super().__init__(*args, **settings)  # type: ignore[arg-type]
        self.noted: list[tuple[list[int], list[int]]] = []

    def propose(self, wishes: Sequence[Wish]) -> list[Proposal]:
        found = super().propose(wishes)
        self.noted += [(list(w.request.tokens), list(p.tokens)) for w, p in zip(wishes, found, strict=True)]
        return found

    def observe(self, rows: Sequence[Row], hidden: Tensor) -> None:
        super().observe(rows, hidden)
        if self.poison:
            for row in rows:
                self._poison_behind(row)

    def _poison_behind(self, row: Row) -> None:
        """Every slot of the layer that the trunk's states have not reached, in blocks of the request."""
        request, cache = row.request, self._steps._cache
        size, layer = cache.block_size, cache.config.num_hidden_layers
        if request.finished:
            return
        slots = [request.table.ids[p // size] * size + p % size
                 for p in range(request.computed, len(request.table) * size)]  # fmt: skip
        for stream in (LATENTS, INDEX_KEYS):
            cache.pool(layer, stream).stored[slots] = float("nan")


def watched(model: GlmMoeDsa, count: int, *, poison: bool = False) -> tuple[LLM, Watched]:
    llm = LLM(model, cache_tokens=4096, draft_tokens=count, drafter="mtp")
    drafter = Watched(model, llm.cache)
    drafter.poison = poison
    llm.engine._drafting = Drafting([drafter], Fixed(count))
    if poison:
        for stream in (LATENTS, INDEX_KEYS):
            llm.cache.pool(model.config.num_hidden_layers, stream).stored.fill_(float("nan"))
    return llm, drafter


def test_poison_behind_the_anchor_changes_no_draft(model: GlmMoeDsa, plain: list[list[int]]) -> None:
    found = []
    for poison in (False, True):
        llm, drafter = watched(model, 5, poison=poison)
        assert texts(llm.generate(prompts(), greedy())) == plain
        found.append(drafter.noted)
    assert found[0] == found[1]
    assert sum(len(drafts) == 5 for _, drafts in found[0]) > 20


@torch.no_grad()
def chain(model: GlmMoeDsa, tokens: list[int], count: int) -> list[int]:
    """The drafts from the last slot but one of `tokens`, by the layer's whole-sequence form."""
    assert model.mtp is not None
    ids, rows = torch.tensor(tokens), len(tokens) - 1
    view = InFlightView([rows])
    state = model.mtp(model.embed_tokens(ids[1:]), model.trunk(ids[:-1], view), view)
    drafts: list[int] = []
    for step in range(1, count + 1):
        if step > 1:
            # Every slot is an anchor of its own here; only the last one's drafts are looked at.
            ahead = torch.zeros(rows, dtype=torch.int64)
            ahead[-1] = drafts[-1]
            state = model.mtp.step(model.embed_tokens(ahead), state, view, step)
        drafts.append(int(model.logits(state.hidden[-1:]).argmax()))
    return drafts


def test_drafts_are_those_of_the_whole_sequence(model: GlmMoeDsa) -> None:
    """Whatever was accepted before: latents and index keys of all tokens come from the trunk's states."""
    llm, drafter = watched(model, 4)
    llm.generate(prompts(), greedy())
    assert len(drafter.noted) > 30
    for tokens, drafts in drafter.noted:
        if drafts:
            assert drafts == chain(model, tokens, len(drafts))


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 7, "repetition_penalty": 1.2}])
def test_sampled_text_is_the_same_alone_and_in_a_batch(model: GlmMoeDsa, settings: dict) -> None:
    params = [SamplingParams(max_tokens=20, seed=n, ignore_eos=True, **settings) for n in range(len(LENGTHS))]
    llm = LLM(model, cache_tokens=4096, draft_tokens=3, drafter="mtp")
    together = llm.generate(prompts(), params)
    alone = [llm.generate([ids], [p])[0] for ids, p in zip(prompts(), params, strict=True)]
    assert texts(together) == texts(alone)
    assert sum(out.stats.accepted_tokens for out in together) > 0


def test_a_chain_of_lookups_and_the_layer_samples_lookups_as_plain_decoding_does(model: GlmMoeDsa) -> None:
    params = [SamplingParams(max_tokens=30, seed=n, top_k=2, ignore_eos=True) for n in range(len(LENGTHS))]
    expected = LLM(model, cache_tokens=4096).generate(prompts(), params)
    found = LLM(model, cache_tokens=4096, draft_tokens=4).generate(prompts(), params)
    assert texts(found) == texts(expected)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"top_k": 3}, {"temperature": 1.6, "top_k": 4, "top_p": 0.95}], ids=str)
def test_the_joint_law_of_sampled_text(model: GlmMoeDsa, settings: dict) -> None:
    """Triples of tokens behind one prompt, drafted and not: two samples of the same law."""
    draws, ids = 4000, prompts()[2]
    counts = []
    for seed, drafts in ((0, 0), (10**6, 3)):
        params = [SamplingParams(max_tokens=3, seed=seed + n, ignore_eos=True, **settings) for n in range(draws)]
        llm = LLM(model, cache_tokens=8192, draft_tokens=drafts, drafter="mtp", max_batch=32)
        found: dict[tuple[int, ...], int] = {}
        for out in llm.generate([ids] * draws, params):
            found[tuple(out.token_ids)] = found.get(tuple(out.token_ids), 0) + 1
        counts.append(found)
    kinds = [k for k in set(itertools.chain(*counts)) if counts[0].get(k, 0) + counts[1].get(k, 0) >= 20]
    pairs = [(counts[0].get(k, 0), counts[1].get(k, 0)) for k in kinds]
    value = sum((a - b) ** 2 / (a + b) for a, b in pairs)
    freedom = len(kinds) - 1
    spread = 2 / (9 * freedom)
    assert freedom > 5
    assert ((value / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread) < 3.1


def test_wrong_settings_are_refused(model: GlmMoeDsa) -> None:
    for settings, message in (
        ({"draft_tokens": 16}, 'draft_tokens is 16; expected an integer from 0 to 15, or "auto"'),
        ({"draft_tokens": "many"}, "draft_tokens is 'many'; expected an integer from 0 to 15"),
        ({"draft_tokens": 2, "drafter": "oracle"}, "drafter is 'oracle'; expected one of lookup, mtp, both"),
    ):
        with pytest.raises(ValueError, match=message):
            LLM(model, cache_tokens=64, **settings)


def test_a_model_without_a_draft_layer_says_so_and_runs() -> None:
    bare = GlmMoeDsa(tiny_config(num_nextn_predict_layers=0)).initialise(1).eval()
    with pytest.raises(ValueError, match='drafter is "mtp", but the model has no draft layer'):
        LLM(bare, cache_tokens=256, draft_tokens=2, drafter="mtp")
    with pytest.warns(UserWarning, match="no draft layer .* lookups alone"):
        llm = LLM(bare, cache_tokens=256, draft_tokens=2, drafter="both")
    assert len(llm.generate([[1, 2, 3]], greedy(8))[0].token_ids) == 8
    assert LLM(bare, cache_tokens=256, drafter="mtp").generate([[1]], greedy(2))


@pytest.mark.parametrize("cache_dtype", ["int8", "fp8"])
@pytest.mark.parametrize("drafter", ["lookup", "mtp"])
def test_greedy_text_over_a_cache_in_8_bits(model: GlmMoeDsa, cache_dtype: str, drafter: str) -> None:
    plain = LLM(model, cache_tokens=4096, cache_dtype=cache_dtype).generate(prompts(), greedy())
    llm = LLM(model, cache_tokens=4096, cache_dtype=cache_dtype, draft_tokens=3, drafter=drafter)
    assert texts(llm.generate(prompts(), greedy())) == texts(plain)
