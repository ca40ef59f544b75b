"""Planted faults are named, one or two at a time; what is right raises no alarm."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from indexshare.model.glm import GlmMoeDsa
from indexshare.verify.conventions import HYPOTHESES
from indexshare.verify.diagnose import Diagnostician
from indexshare.verify.forward import PlainForward
from indexshare.verify.observation import read_logprobs
from indexshare.verify.others import ask_ourselves
from tests.unit.verify.conftest import BY_NAME, observe, small_model


@pytest.mark.parametrize("name", [h.name for h in HYPOTHESES])
def test_each_fault_is_the_single_best_explanation(forward: PlainForward, token_ids: torch.Tensor, name: str) -> None:
    fault = BY_NAME[name]
    if not fault.applies(forward.config):
        pytest.skip("makes no difference to this model")
    found = Diagnostician(forward, observe(forward, token_ids, fault)).diagnose()
    assert [h.name for h in found.found] == [name]
    assert (found.verdict, found.left) == ("explained", 0.0)


@pytest.mark.parametrize("name", ["indexer-rope-layout", "sharing-ignored", "attention-rope-layout", "norm-eps-1e-6"])
def test_log_probabilities_of_the_tokens_alone_are_enough(
    forward: PlainForward, token_ids: torch.Tensor, name: str
) -> None:
    found = Diagnostician(forward, observe(forward, token_ids, BY_NAME[name], scalars=True)).diagnose()
    assert [h.name for h in found.found] == [name]


@pytest.mark.parametrize(
    "names",
    [
        ("attention-rope-layout", "indexer-rope-layout"),  # one in each place
        ("routed-scale-missing", "expert-bias-as-weight"),  # both in the trunk
        pytest.param(("relu-missing", "share-offset-early"), marks=pytest.mark.slow),  # both in the selection
        pytest.param(("norm-eps-1e-6", "draft-halves-swapped"), marks=pytest.mark.slow),
    ],
    ids="+".join,
)
def test_two_faults_are_both_named(forward: PlainForward, token_ids: torch.Tensor, names: tuple[str, str]) -> None:
    faults = [BY_NAME[name] for name in names]
    found = Diagnostician(forward, observe(forward, token_ids, *faults)).diagnose()
    assert sorted(h.name for h in found.found) == sorted(names)
    assert found.verdict == "explained"


def test_the_first_layer_apart_is_named(forward: PlainForward, token_ids: torch.Tensor) -> None:
    found = Diagnostician(forward, observe(forward, token_ids, BY_NAME["sharing-ignored"])).diagnose()
    assert found.first_layer == min(forward.config.share_plan.shared_layers)


def test_no_alarm_for_the_package_s_own_kernels(
    model: GlmMoeDsa, forward: PlainForward, token_ids: torch.Tensor
) -> None:
    found = Diagnostician(forward, ask_ourselves(model, token_ids.tolist())).diagnose()
    assert (found.verdict, found.found) == ("same", [])


@pytest.mark.slow
def test_what_no_convention_explains_is_said_to_be_unexplained(forward: PlainForward, token_ids: torch.Tensor) -> None:
    seen = observe(forward, token_ids)
    noise = torch.randn(seen.logprobs.shape, generator=torch.Generator().manual_seed(0))
    strange = dataclasses.replace(seen, rows=None, layers=None, logprobs=(seen.logprobs - noise.abs()))
    found = Diagnostician(forward, strange).diagnose()
    assert (found.verdict, found.found) == ("unexplained", [])
    assert found.attempts


def test_a_text_that_shows_nothing_is_refused(forward: PlainForward) -> None:
    ids = torch.zeros(forward.config.index_topk + 11, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"fewer than 20 nothing of the selection can be seen; give a longer text"):
        Diagnostician(forward, observe(forward, ids))


def test_a_file_of_log_probabilities(tmp_path: Path, forward: PlainForward, token_ids: torch.Tensor) -> None:
    seen = observe(forward, token_ids, BY_NAME["dense-fallback"])
    file = tmp_path / "other.json"
    file.write_text(json.dumps({"token_ids": token_ids.tolist(), "logprobs": [None, *seen.logprobs.tolist()]}))
    found = Diagnostician(forward, read_logprobs(file)).diagnose()
    assert [h.name for h in found.found] == ["dense-fallback"]


def test_a_draft_layer_that_the_model_does_not_have(tmp_path: Path) -> None:
    model = small_model(num_nextn_predict_layers=0)
    file = tmp_path / "other.json"
    text = {"token_ids": [1] * 20, "logprobs": [-1] * 19, "draft_logprobs": [-1] * 18}
    file.write_text(json.dumps(text))
    with pytest.raises(ValueError, match="the model has none; leave out its draft_logprobs"):
        Diagnostician(PlainForward(model.config, model.state_dict()), read_logprobs(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no", "is not JSON"),
        ("[]", 'expected an object with "token_ids" and "logprobs"'),
        ('{"token_ids": [1], "logprobs": []}', "at least two ids"),
        ('{"token_ids": [1, 2, 3], "logprobs": [-1]}', "expected 2 log-probabilities"),
        ('{"token_ids": [1, 2, 3], "logprobs": [-1, 1]}', "one of token 2 .counted from 0. is 1"),
        ('{"token_ids": [1, 2, 3], "logprobs": [-1, "x"]}', "one of token 2 .* is 'x'"),
        ('{"token_ids": [1, 2, 3], "logprobs": [null, -1, NaN]}', "one of token 2 .* is nan"),
        ('{"token_ids": [1, 2, 3], "logprobs": [null, null, -1]}', "one of token 1 .* is None"),
        ('{"token_ids": [1, 2, 3], "logprobs": 5}', "expected 2 log-probabilities, .* and got 5"),
        ('{"token_ids": [1, -2, 3], "logprobs": []}', "at least two ids"),
        ("[" * 100_000, "is not JSON"),
        ('{"token_ids": [1, 2], "logprobs": [-1], "draft_logprobs": []}', "at least three tokens; it has 2"),
        (
            '{"token_ids": [1, 2, 3], "logprobs": [-1, -1], "draft_logprobs": [-1, -1]}',
            "expected 1 draft_logprobs, .*two",
        ),
        ('{"token_ids": [1, 2, 3], "logprobs": [-1, -1], "draft_logprobs": [1]}', "one of token 2 .* is 1"),
    ],
)
def test_files_that_are_not_right(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_logprobs(file)
