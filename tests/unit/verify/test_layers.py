"""Layers are compared one by one, each from the other program's states: what is right stays right behind a mistake."""

import pytest
import torch

from indexshare.verify.diagnose import Diagnostician
from indexshare.verify.forward import PlainForward
from indexshare.verify.layers import LayerDifference, compare_layers, regret
from indexshare.verify.probe import CLEAR, LEAST, probe_length, probe_tokens
from tests.unit.verify.conftest import BY_NAME, observe


def apart(forward: PlainForward, ids: torch.Tensor, name: str) -> dict[str, list[int]]:
    layers = observe(forward, ids, BY_NAME[name]).layers
    assert layers is not None
    found: dict[str, list[int]] = {}
    for one in compare_layers(forward, layers):
        for part in one.apart(1e-4):
            found.setdefault(part, []).append(one.layer)
    return found


def test_right_layers_are_right(forward: PlainForward, token_ids: torch.Tensor) -> None:
    layers = observe(forward, token_ids).layers
    assert layers is not None
    for one in compare_layers(forward, layers):
        assert max(one.choice, one.attention, one.feed_forward) < 1e-6


def test_a_mistake_is_seen_in_its_own_part_only(forward: PlainForward, token_ids: torch.Tensor) -> None:
    config, ids = forward.config, token_ids
    every = list(range(config.num_hidden_layers))
    experts = [layer for layer in every if config.is_moe(layer)]
    assert apart(forward, ids, "relu-missing") == {"choice of tokens": list(config.share_plan.full_layers)}
    assert apart(forward, ids, "dense-fallback")["choice of tokens"] == list(config.share_plan.full_layers)
    assert apart(forward, ids, "sharing-ignored") == {"choice of tokens": list(config.share_plan.shared_layers)}
    assert apart(forward, ids, "attention-rope-layout") == {"attention": every}
    assert apart(forward, ids, "routed-scale-missing") == {"feed-forward": experts}


def test_equal_scores_may_be_chosen_either_way() -> None:
    scores = torch.tensor([[9.0, 0, 0, 0], [1, 2, 0, 0], [3, 1, 1, 0], [1, 4, 2, 4]])
    right = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]]).bool()
    assert regret(scores, right, 2) == 0.0
    other = right.clone()
    other[2] = torch.tensor([1, 0, 1, 0])
    assert regret(scores, other, 2) == 0.0
    other[3] = torch.tensor([0, 1, 1, 0])
    assert regret(scores, other, 2) == 0.5
    assert regret(scores, torch.ones(4, 4).tril().bool(), 2) == 1.0


def test_the_diagnosis_knows_the_layers(forward: PlainForward, token_ids: torch.Tensor) -> None:
    found = Diagnostician(forward, observe(forward, token_ids, BY_NAME["sharing-ignored"])).diagnose()
    assert found.first_layer == min(forward.config.share_plan.shared_layers)
    assert len(found.to_dict()["layers"]) == forward.config.num_hidden_layers


def test_parts_that_are_not_numbers_are_apart() -> None:
    one = LayerDifference(layer=0, choice=float("nan"), attention=0.0, feed_forward=1.0)
    assert one.apart(1e-4) == ["choice of tokens", "feed-forward"]


def test_texts_are_clear_and_repeat(forward: PlainForward) -> None:
    told: list[tuple[int, int]] = []
    ids = probe_tokens(forward, seed=3, progress=lambda done, total: told.append((done, total)))
    assert forward(ids).margin >= CLEAR
    assert torch.equal(ids, probe_tokens(forward, seed=3))
    assert not torch.equal(ids, probe_tokens(forward, seed=4))
    assert told and told[-1][0] <= told[-1][1]


def test_lengths_of_texts(forward: PlainForward) -> None:
    config = forward.config
    assert probe_length(config) == config.index_topk + 24
    assert probe_length(config, config.index_topk + LEAST) == config.index_topk + LEAST
    with pytest.raises(ValueError, match="give a longer text or a smaller --topk"):
        probe_length(config, config.index_topk + LEAST - 1)
    with pytest.raises(ValueError, match="the model's context is"):
        probe_length(config, config.max_position_embeddings + 1)
