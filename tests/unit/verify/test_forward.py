"""The plain forward pass is the model's own: two definitions that share no code agree."""

import pytest
import torch

from indexshare.cache.view import InFlightView
from indexshare.config.rope import RopeParameters
from indexshare.verify.conventions import HYPOTHESES, RIGHT
from indexshare.verify.forward import PlainForward
from tests.tolerance import TOL
from tests.unit.verify.conftest import small_model

YARN = RopeParameters(
    rope_theta=1e4, rope_type="yarn", factor=4.0, original_max_position_embeddings=64, mscale=1.0, mscale_all_dim=1.0
)


@pytest.mark.parametrize("tokens", [1, 5, 8, 9, 40])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"indexer_rope_interleave": False, "attention_bias": True},
        {"tie_word_embeddings": True, "norm_topk_prob": False},
        {"n_shared_experts": 0, "n_group": 1, "topk_group": 1, "rope_parameters": YARN},
    ],
    ids=["plain", "halves-and-biases", "tied", "yarn"],
)
def test_it_is_the_model(changes: dict[str, object], tokens: int) -> None:
    model = small_model(2, **changes)
    ids = torch.randint(model.config.vocab_size, (tokens,), generator=torch.Generator().manual_seed(tokens))
    trace = PlainForward(model.config, model.state_dict())(ids, draft=tokens > 1)
    with torch.no_grad():
        view = InFlightView([tokens])
        hidden = model.trunk(ids, view)
        torch.testing.assert_close(trace.logits, model.logits(hidden), **TOL["public prefill logits", "float32"].bounds)
        if trace.draft_logits is None:
            return
        assert model.mtp is not None
        state = model.mtp(model.embed_tokens(ids[1:]), hidden[:-1], InFlightView([tokens - 1]))
        expected = model.logits(state.hidden)
    torch.testing.assert_close(trace.draft_logits, expected, **TOL["public prefill logits", "float32"].bounds)


def test_every_hypothesis_changes_something(forward: PlainForward, token_ids: torch.Tensor) -> None:
    right = forward(token_ids, RIGHT, draft=True)
    assert right.draft_logits is not None
    for hypothesis in HYPOTHESES:
        if not hypothesis.applies(forward.config):
            continue
        trace = forward(token_ids, hypothesis.on(RIGHT), draft=True)
        assert trace.draft_logits is not None
        apart = float((trace.logits - right.logits).abs().max())
        drafts = float((trace.draft_logits - right.draft_logits).abs().max())
        assert max(apart, drafts) > 0, hypothesis.name
        assert (apart > 0) == (hypothesis.place != "draft"), hypothesis.name


def test_mistakes_in_the_selection_are_invisible_in_short_texts(forward: PlainForward, token_ids: torch.Tensor) -> None:
    short = token_ids[: forward.config.index_topk]
    right = forward(short).logits
    for hypothesis in HYPOTHESES:
        if hypothesis.place == "selection" and hypothesis.applies(forward.config):
            assert torch.equal(forward(short, hypothesis.on(RIGHT)).logits, right), hypothesis.name
