"""What chooses the tokens: the control ignores scores, a made-up selector is a function, heads choose in groups."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from indexshare import ops
from indexshare.cache.paged import PagedCache
from indexshare.cache.view import InFlightView
from indexshare.config import ModelConfig, preset, variant
from indexshare.config.variant import Kind, register_kind
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.model import selectors
from indexshare.model.attention.mla import MLA
from indexshare.model.draft.mtp import DraftState
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import AttentionRecord, Observer
from indexshare.model.selection import Selection
from indexshare.model.selectors import Selector, content, recent
from indexshare.ops.indexer import reference
from indexshare.step.native_step import NativeStep
from tests.tolerance import TOL

LOGITS = TOL["logits between forms", "float32"].bounds


def test_content_is_the_indexers_choice() -> None:
    q, weights, keys, positions = torch.randn(3, 2, 4), torch.randn(3, 2), torch.randn(50, 4), torch.tensor([49, 2, 4])
    assert torch.equal(content(q, weights, keys, positions, 5), reference.select_topk(q, weights, keys, positions, 5))


def test_the_recent_control_ignores_scores() -> None:
    q, weights, keys = torch.randn(3, 2, 4), torch.randn(3, 2), torch.randn(50, 4)
    chosen = recent(q, weights, keys, torch.tensor([49, 2, 4]), 5)
    assert chosen.tolist() == [[45, 46, 47, 48, 49], [0, 1, 2, -1, -1], [0, 1, 2, 3, 4]]


class Recorder(Observer):
    """Keeps what each layer attended to."""

    wants_attention = True

    def __init__(self) -> None:
        self.records: dict[int, AttentionRecord] = {}

    def attention(self, record: AttentionRecord) -> None:
        self.records[record.layer] = record


@dataclass(frozen=True)
class Every(Kind):
    """Made up: every so many tokens, counted back from the query."""

    kind: ClassVar[str] = "every"

    stride: int


def every(stride: int) -> Selector:
    """Leaves places empty where the context does not reach."""

    def choose(q: Tensor, weights: Tensor, keys: Tensor, positions: Tensor, topk: int) -> Tensor:
        back = positions[:, None] - stride * torch.arange(topk)
        chosen = back.clamp_min(-1).flip(1)  # ascending, what is missing first
        return torch.stack([row.roll(-int((row < 0).sum())) for row in chosen])

    return choose


def _made(config: ModelConfig) -> Selector:
    settings = config.variant.selection
    assert isinstance(settings, Every)
    return every(settings.stride)


@pytest.fixture
def config() -> Iterator[ModelConfig]:
    register_kind("selection", Every)
    selectors.register("every", _made)
    key = {"selection": {"kind": "every", "stride": 3}}
    yield ModelConfig.from_dict(preset("tiny").to_dict() | {"indexshare": key})
    del variant._KINDS["selection"]["every"], selectors._KINDS["every"]


def test_a_made_up_selector_runs_a_forward_pass_and_generates(config: ModelConfig) -> None:
    model = GlmMoeDsa(config).initialise(3).eval()
    prompt, recorder = torch.randint(config.vocab_size, (40,)).tolist(), Recorder()
    with torch.no_grad():
        model.trunk(torch.tensor(prompt), InFlightView([40]), observer=recorder)
    selection = recorder.records[5].selection
    assert selection.positions[-1].tolist() == [18, 21, 24, 27, 30, 33, 36, 39]
    assert selection.positions[0].tolist() == [2, 5, 8, -1, -1, -1, -1, -1]

    llm = LLM(model, cache_tokens=128, prefill_chunk=7)
    with torch.inference_mode():
        assert NativeStep(model).refusal(llm.cache.view([[0]], [(0, 1)])) == "the selection is not the indexer's alone"
    output = llm.generate([prompt], SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True, logprobs=0))[0]
    assert output.logprobs is not None
    with torch.no_grad():
        logits = model(torch.tensor([prompt + output.token_ids[:-1]]))[0, -9:]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(output.token_ids)[:, None])[:, 0]
    actual = torch.tensor([entry.logprob for entry in output.logprobs])
    torch.testing.assert_close(actual, expected, **TOL["engine logprobs", "float32"].bounds)


def test_a_pass_may_bring_its_own_selector(config: ModelConfig) -> None:
    """In place of the model's, in the draft layer too."""
    plain = GlmMoeDsa(preset("tiny").replace(num_nextn_predict_layers=1)).initialise(3).eval()
    named = GlmMoeDsa(config.replace(num_nextn_predict_layers=1)).initialise(3).eval()
    ids, view = torch.randint(config.vocab_size, (40,)), InFlightView([40])
    assert plain.mtp is not None and named.mtp is not None
    with torch.no_grad():
        given, own = plain.trunk(ids, view, selector=every(3)), named.trunk(ids, InFlightView([40]))
        assert torch.equal(given, own)
        assert not torch.equal(plain.trunk(ids, InFlightView([40])), given)
        embeddings = plain.embed_tokens(ids)
        state = plain.mtp(embeddings, given, InFlightView([40]), selector=every(3))
        assert torch.equal(state.hidden, named.mtp(embeddings, own, InFlightView([40])).hidden)


def test_a_kind_without_a_selector_is_refused(config: ModelConfig) -> None:
    del selectors._KINDS["every"]
    try:
        with pytest.raises(ValueError, match="no selection of the kind 'every' is registered; there are content"):
            GlmMoeDsa(config)
    finally:
        selectors.register("every", _made)


def both(q: Tensor, weights: Tensor, keys: Tensor, positions: Tensor, topk: int) -> Tensor:
    """Two groups of heads: the first has the indexer's choice, the second the most recent tokens."""
    return torch.stack([choose(q, weights, keys, positions, topk) for choose in (content, recent)], dim=1)


def twice(q: Tensor, weights: Tensor, keys: Tensor, positions: Tensor, topk: int) -> Tensor:
    """Two groups with one choice."""
    return content(q, weights, keys, positions, topk)[:, None].expand(-1, 2, -1)


@pytest.mark.parametrize("paged", [False, True])
def test_groups_of_heads_with_one_choice_are_one_group(paged: bool) -> None:
    model = GlmMoeDsa(preset("tiny")).initialise(3).eval()
    ids, cache = torch.randint(model.config.vocab_size, (61,)), PagedCache(model.config, 12, 8, torch.float32)
    results = []
    for selector in (None, twice):
        view = cache.view([[3, 4, 1, 7, 0, 9, 10, 2]], [(0, 61)]) if paged else InFlightView([61])
        with torch.no_grad():
            results.append(model.trunk(ids, view, selector=selector))
    torch.testing.assert_close(*results, **LOGITS)


def test_each_group_of_heads_attends_to_its_own_choice() -> None:
    """One layer's attention, head by head, against each group's choice given to all heads; gradients included."""
    model, recorder = GlmMoeDsa(preset("tiny")).initialise(3), Recorder()
    view = InFlightView([30])
    model.trunk(torch.randint(model.config.vocab_size, (30,)), view, selector=both, observer=recorder)
    record, mla = recorder.records[4], model.layers[4].self_attn
    selection, pool = record.selection, view.pool(4, "latents")
    assert isinstance(mla, MLA) and selection.groups == 2 and selection.slots.shape == (22, 2, 8)
    assert selection.slots[-1, 1].tolist() == list(range(22, 30))
    mixed = mla._mix(record.queries[selection.rows], pool, selection)
    half = mla.num_heads // 2
    for group, heads in enumerate((slice(0, half), slice(half, None))):
        slots = selection.slots[:, group]
        alone = ops.sparse_mla(record.queries[selection.rows], pool.stored, slots, mla.scale, mla.rank)
        torch.testing.assert_close(mixed[:, heads], alone[:, heads], **TOL["sparse mla", "float32"].bounds)
    assert not torch.equal(selection.slots[:, 0], selection.slots[:, 1])
    mixed.sum().backward()
    assert model.layers[4].self_attn.q_b_proj.weight.grad.abs().sum() > 0


def test_some_rows_of_a_grouped_selection() -> None:
    slots = torch.arange(12).view(3, 2, 2)
    selection = Selection(4, torch.tensor([4, 5, 6]), slots, slots)
    state = DraftState(torch.randn(7, 3), selection).at(torch.tensor([2, 5]))
    assert state.selection.rows.tolist() == [1]
    assert torch.equal(state.selection.slots, slots[1:2]) and state.selection.groups == 2
