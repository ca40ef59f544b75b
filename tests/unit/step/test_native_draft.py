"""The draft layer's native steps against its modules; rows of one sequence against single steps, bit by bit."""

import pytest
import torch

from indexshare.adapt.quantized import quantize_weights
from indexshare.cache.paged import PagedCache, PagedView
from indexshare.config.layers import INDEX_KEYS
from indexshare.config.mla import LATENTS
from indexshare.model.draft.mtp import DraftState
from indexshare.model.glm import GlmMoeDsa
from indexshare.ops.native import native
from indexshare.step.native_draft import NativeDraft
from indexshare.step.native_step import NativeStep
from tests.tolerance import TOL
from tests.unit.checkpoint.checkpoints import tiny_config

pytestmark = pytest.mark.skipif(native().library is None, reason=native().reason)
TABLES = ([5, 0, 7, 2], [1, 3, 4, 6])
STEPS = 4


def random_model(topk: int, **changes: object) -> GlmMoeDsa:
    config = tiny_config(index_topk=topk, vocab_size=90, initializer_range=0.3, **changes)
    model = GlmMoeDsa(config).initialise(7).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name:
                tensor.add_(torch.randn(tensor.shape) * 0.1)
    return model


def poisoned(model: GlmMoeDsa) -> PagedCache:
    cache = PagedCache(model.config, 8, 8, model.embed_tokens.weight.dtype, draft=True)
    for pool in cache.pools.values():
        pool.stored.fill_(torch.nan)
    return cache


def past_and_new(
    model: GlmMoeDsa, cache: PagedCache, pasts: list[int], news: list[int], ids: torch.Tensor, states: torch.Tensor
) -> tuple[PagedView, PagedView, list[int], torch.Tensor]:
    """Store both pasts in the layer; views of the new rows and of the anchors, ids and states of the new rows."""
    assert model.mtp is not None
    for table, past, text, state in zip(TABLES, pasts, ids, states, strict=True):
        if past:
            view = cache.view([table], [(0, past)])
            model.mtp.store(model.embed_tokens(text[1 : past + 1]), state[:past], view)
    view = cache.view(TABLES, list(zip(pasts, news, strict=True)))
    anchors = cache.view(TABLES, [(past + new - 1, 1) for past, new in zip(pasts, news, strict=True)])
    spans = list(zip(range(2), pasts, news, strict=True))
    following = [int(t) for n, past, new in spans for t in ids[n, past + 1 : past + new + 1]]
    return view, anchors, following, torch.cat([states[n, past : past + new] for n, past, new in spans])


@pytest.mark.parametrize("topk", [3, 8, 64])
@pytest.mark.parametrize("news", [[1, 1], [3, 1], [4, 6]])
@pytest.mark.parametrize("changes", [{}, {"n_shared_experts": 1, "attention_bias": True}], ids=str)
@torch.inference_mode()
def test_all_steps_equal_the_modules(topk: int, news: list[int], changes: dict) -> None:
    model = random_model(topk, **changes)
    assert model.mtp is not None
    ids, states, pasts = torch.randint(90, (2, 40)), torch.randn(2, 40, model.config.hidden_size), [17, 6]
    bounds = TOL["decode step", "float32"].bounds
    one, other = poisoned(model), poisoned(model)
    view, anchors, following, new_states = past_and_new(model, one, pasts, news, ids, states)
    step = NativeDraft(model)
    assert step.refusal(view) is None
    last = [span.stop - 1 for span in view.spans]
    hidden, logits = step.first(following, new_states, view, wanted=last)
    reference_view, reference_anchors, *_ = past_and_new(model, other, pasts, news, ids, states)
    state = model.mtp(model.embed_tokens(torch.tensor(following)), new_states, reference_view)
    state = DraftState(state.hidden, state.selection).at(torch.tensor(last))
    torch.testing.assert_close(hidden[last], state.hidden, **bounds)
    torch.testing.assert_close(logits, model.logits(state.hidden), **bounds)
    hidden, rows = hidden[last], last
    before = {key: pool.stored.clone() for key, pool in one.pools.items()}
    for number in range(2, STEPS + 1):
        tokens = [3 * number, 5 * number]
        hidden, logits = step.later(tokens, hidden, anchors, step=number, rows=rows)
        state = model.mtp.step(model.embed_tokens(torch.tensor(tokens)), state, reference_anchors, number)
        torch.testing.assert_close(hidden, state.hidden, **bounds)
        torch.testing.assert_close(logits, model.logits(state.hidden), **bounds)
        rows = [0, 1]
    for key, pool in one.pools.items():
        assert torch.equal(pool.stored.nan_to_num(7.0), before[key].nan_to_num(7.0)), "a later step wrote"
    layer = model.config.num_hidden_layers
    for stream in (LATENTS, INDEX_KEYS):
        a, b = one.pool(layer, stream).stored, other.pool(layer, stream).stored
        torch.testing.assert_close(a, b, equal_nan=True, **bounds)


@pytest.mark.parametrize("weights", [None, "int8"])
@torch.inference_mode()
def test_a_batch_drafts_as_each_sequence_does_alone(weights: str | None) -> None:
    model = random_model(5)
    if weights is not None:
        quantize_weights(model, weights)
    ids, states = torch.randint(90, (2, 40)), torch.randn(2, 40, model.config.hidden_size)
    found = []
    for chosen in ([0, 1], [0], [1]):
        cache, step, rows = poisoned(model), NativeDraft(model), []
        view, anchors, following, new_states = past_and_new(model, cache, [17, 6], [2, 2], ids, states)
        if len(chosen) == 1:
            n = chosen[0]
            view = cache.view([TABLES[n]], [([17, 6][n], 2)])
            anchors = cache.view([TABLES[n]], [([18, 7][n], 1)])
            following, new_states = following[2 * n : 2 * n + 2], new_states[2 * n : 2 * n + 2]
        last = [span.stop - 1 for span in view.spans]
        hidden, logits = step.first(following, new_states, view, wanted=last)
        rows.append(logits)
        hidden, place = hidden[last], last
        for number in range(2, STEPS + 1):
            tokens = [[11, 12][n] for n in chosen]
            hidden, logits = step.later(tokens, hidden, anchors, step=number, rows=place)
            rows.append(logits)
            place = list(range(len(chosen)))
        found.append(torch.stack(rows))
    assert torch.equal(found[0], torch.cat(found[1:], dim=1))


@pytest.mark.parametrize("topk", [3, 64])
@torch.inference_mode()
def test_a_round_in_one_call_is_the_steps_one_by_one(topk: int) -> None:
    model = random_model(topk)
    ids, states = torch.randint(90, (2, 40)), torch.randn(2, 40, model.config.hidden_size)
    cache, other, step = poisoned(model), poisoned(model), NativeDraft(model)
    view, anchors, following, new_states = past_and_new(model, cache, [17, 6], [3, 2], ids, states)
    drafts = step.round(following, new_states, view, anchors, steps=STEPS)
    view, anchors, *_ = past_and_new(model, other, [17, 6], [3, 2], ids, states)
    rows = [span.stop - 1 for span in view.spans]
    hidden, logits = step.first(following, new_states, view, wanted=rows)
    hidden, found = hidden[rows], [logits.argmax(1).tolist()]
    for number in range(2, STEPS + 1):
        hidden, logits = step.later(found[-1], hidden, anchors, step=number, rows=rows)
        found.append(logits.argmax(1).tolist())
        rows = [0, 1]
    assert drafts == found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [None, "int8", "int4"])
@torch.inference_mode()
def test_rows_of_one_sequence_are_those_of_single_steps_bit_by_bit(dtype: torch.dtype, weights: str | None) -> None:
    """What verification rests on: a row computed behind other rows of its sequence is the row of a step of its own."""
    model = random_model(9).to(dtype)
    if weights is not None:
        quantize_weights(model, weights)
    ids = torch.randint(90, (30,)).tolist()
    together, alone = poisoned(model), poisoned(model)
    for cache in (together, alone):
        model.trunk(torch.tensor(ids[:20]), cache.view([TABLES[0]], [(0, 20)]))
    step = NativeStep(model)
    hidden, logits = step(ids[20:28], together.view([TABLES[0]], [(20, 8)]))
    for n in range(8):
        one_hidden, one_logits = step(ids[20 + n : 21 + n], alone.view([TABLES[0]], [(20 + n, 1)]))
        assert torch.equal(one_hidden[0], hidden[n])
        assert torch.equal(one_logits[0], logits[n])
    for key, pool in together.pools.items():
        if key[0] < model.config.num_hidden_layers:
            assert torch.equal(pool.stored.nan_to_num(7.0), alone.pools[key].stored.nan_to_num(7.0))
