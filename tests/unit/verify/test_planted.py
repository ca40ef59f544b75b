"""From twelve tokens beyond `index_topk` a fault is named, on random and on trained weights, alone and with another."""

import time

import pytest
import torch

from indexshare.checkpoint.load import load_model
from indexshare.verify.conventions import HYPOTHESES
from indexshare.verify.diagnose import Diagnostician
from indexshare.verify.forward import PlainForward
from indexshare.verify.probe import LEAST, probe_tokens
from tests.unit.verify.conftest import BY_NAME, observe, small_model, some_of

NAMES = [h.name for h in HYPOTHESES]
PAIRS = [
    ("attention-rope-layout", "indexer-rope-layout"),
    ("routed-scale-missing", "sharing-ignored"),
    ("norm-eps-1e-6", "relu-missing"),
    ("softmax-scale-nope", "dense-fallback"),
    ("expert-bias-as-weight", "head-weights-missing"),
    ("rope-theta-1e6", "share-offset-late"),
]


def shortest(forward: PlainForward, seed: int = 0) -> torch.Tensor:
    return probe_tokens(forward, tokens=forward.config.index_topk + LEAST, seed=seed)


def names(forward: PlainForward, ids: torch.Tensor, *faults: str, scalars: bool = True) -> list[str]:
    seen = observe(forward, ids, *(BY_NAME[name] for name in faults), scalars=scalars)
    return sorted(h.name for h in Diagnostician(forward, seen).diagnose().found)


def check_alone(forward: PlainForward, name: str) -> None:
    """It is named. Rounded scores change a choice in few short texts, and the epsilon is below rounding in `nano`."""
    seen = observe(forward, shortest(forward), BY_NAME[name], scalars=True)
    found = Diagnostician(forward, seen).diagnose()
    if found.verdict != "same":
        assert [h.name for h in found.found] == [name]
    else:
        assert name in ("score-precision", "latent-norm-eps-1e-5")


@pytest.mark.parametrize("name", some_of(NAMES, NAMES[::3]))
def test_random_weights_from_twelve_tokens_beyond(forward: PlainForward, name: str) -> None:
    if not BY_NAME[name].applies(forward.config):
        pytest.skip("makes no difference to this model")
    check_alone(forward, name)


@pytest.mark.parametrize("name", some_of(NAMES, {"relu-missing", "rope-theta-1e6", "draft-halves-swapped"}))
def test_trained_weights_from_twelve_tokens_beyond(trained: PlainForward, name: str) -> None:
    if not BY_NAME[name].applies(trained.config):
        pytest.skip("makes no difference to this model")
    check_alone(trained, name)


@pytest.mark.parametrize("pair", some_of(PAIRS, PAIRS[:1]), ids="+".join)
@pytest.mark.parametrize("weights", ["random", "trained"])
def test_two_at_once(request: pytest.FixtureRequest, weights: str, pair: tuple[str, str]) -> None:
    forward = request.getfixturevalue("forward" if weights == "random" else "trained")
    if not all(BY_NAME[name].applies(forward.config) for name in pair):
        pytest.skip("one of them makes no difference to this model")
    assert names(forward, shortest(forward), *pair) == sorted(pair)


@pytest.fixture(scope="module")
def nano() -> PlainForward:
    loaded = load_model("nano", dtype="float32")
    return PlainForward(loaded.config, loaded.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_nano_from_twelve_tokens_beyond(nano: PlainForward, name: str) -> None:
    if not BY_NAME[name].applies(nano.config):
        pytest.skip("makes no difference to this model")
    check_alone(nano, name)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_two_at_once_with_other_weights(pair: tuple[str, str], seed: int) -> None:
    model = small_model(10 + seed)
    forward = PlainForward(model.config, model.state_dict())
    assert names(forward, shortest(forward), *pair) == sorted(pair)


@pytest.mark.slow
def test_two_minutes_on_two_cores_are_enough_for_two_faults(nano: PlainForward) -> None:
    pair = ("relu-missing", "share-offset-early")
    seen = observe(nano, shortest(nano), *(BY_NAME[name] for name in pair), scalars=True)
    began = time.perf_counter()
    found = Diagnostician(nano, seen).diagnose()
    assert time.perf_counter() - began < 120
    assert sorted(h.name for h in found.found) == sorted(pair)
