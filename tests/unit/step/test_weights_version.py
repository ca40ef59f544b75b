"""Weights that are replaced while a sequence runs: whoever replaces them says so, and the very next step uses them."""

from collections.abc import Callable

import pytest
import torch

from indexshare import ops
from indexshare.adapt.quantized import quantize_weights
from indexshare.cache.paged import PagedCache
from indexshare.config import preset
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.model.glm import GlmMoeDsa
from indexshare.ops.native import native
from indexshare.step.native_step import NativeStep
from tests.unit.step.test_native_step import random_model

pytestmark = pytest.mark.skipif(native().library is None, reason=native().reason)
Change = Callable[[GlmMoeDsa], object]


def scale_a_matrix(model: GlmMoeDsa) -> None:
    with torch.no_grad():
        model.layers[1].self_attn.o_proj.weight.mul_(2)


def load_into_the_old_tensors(model: GlmMoeDsa) -> None:
    model.load_state_dict(random_model(model.config, 6).state_dict())


def load_other_tensors(model: GlmMoeDsa) -> None:
    """All but the embedding, as a publisher of changed layers would."""
    weights = {
        name: tensor for name, tensor in random_model(model.config, 6).state_dict().items() if "embed" not in name
    }
    model.load_state_dict(weights, strict=False, assign=True)


def cast_there_and_back(model: GlmMoeDsa) -> None:
    model.bfloat16().float()


def replace_a_parameter(model: GlmMoeDsa) -> None:
    old = model.layers[2].self_attn.o_proj.weight
    model.layers[2].self_attn.o_proj.weight = torch.nn.Parameter(3 * old.detach())
    model.weights_changed()


def replace_a_module(model: GlmMoeDsa) -> None:
    model.layers[1].mlp = random_model(model.config, 6).layers[1].mlp
    model.weights_changed()


def move_all_data(model: GlmMoeDsa) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5
    model.weights_changed()


CHANGES: list[Change] = [
    scale_a_matrix, load_into_the_old_tensors, load_other_tensors, cast_there_and_back, replace_a_parameter,
    replace_a_module, move_all_data, lambda model: quantize_weights(model, "int8"),
]  # fmt: skip
NAMES = [getattr(change, "__name__", "") for change in CHANGES[:-1]] + ["quantize_weights"]


@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_the_next_step_of_a_running_sequence_uses_them(change: Change) -> None:
    model = random_model(preset("tiny"), 5)
    cache, step = PagedCache(model.config, 2, 8), NativeStep(model)
    with torch.inference_mode():
        step([7], cache.view([[1]], [(0, 1)]))
        second = cache.view([[1]], [(1, 1)])
        before = step([9], second)[1]
        with torch.inference_mode(False):
            change(model)
        after = step([9], second)[1]
        assert torch.equal(after, NativeStep(model)([9], second)[1])
        assert not torch.equal(after, before)


@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_a_running_generation_goes_on_with_them(change: Change) -> None:
    """Against the same change at the same token where every operation reads the modules itself."""
    prompt, params = [3, 77, 140, 9, 21], SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)

    def generated(change: Change) -> list[int]:
        model = random_model(preset("tiny"), 5)
        engine = LLM(model, cache_tokens=64).engine
        generation = engine.submit(prompt, params, "prompt")
        for number in range(12):
            engine.step()
            if number == 5:
                change(model)
        assert generation.output is not None
        return list(generation.output.token_ids)

    actual = generated(change)
    with ops.force("torch"):
        assert actual == generated(change)
    if change is not cast_there_and_back:
        assert actual != generated(lambda model: None)


def test_nothing_is_looked_up_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, looked = random_model(preset("tiny"), 5), []
    weights = NativeStep._weights
    monkeypatch.setattr(NativeStep, "_weights", lambda self: looked.append(1) or weights(self))
    cache, step = PagedCache(model.config, 2, 8), NativeStep(model)
    with torch.inference_mode():
        for at in range(6):
            step([7], cache.view([[1]], [(at, 1)]))
            assert len(looked) == 1
        model.weights_changed()
        step([7], cache.view([[1]], [(6, 1)]))
    assert len(looked) == 2


def test_old_weights_live_as_long_as_they_may_be_read() -> None:
    """Replaced without a word in the middle of a sequence: the step goes on with the old ones."""
    model = random_model(preset("tiny"), 5)
    cache, step = PagedCache(model.config, 2, 8), NativeStep(model)
    with torch.inference_mode():
        step([7], cache.view([[1]], [(0, 1)]))
        before = step([9], cache.view([[1]], [(1, 1)]))[1]
        for parameter in model.layers.parameters():
            parameter.data = torch.full_like(parameter.data, torch.nan)
        assert torch.equal(step([9], cache.view([[1]], [(1, 1)]))[1], before)
        step([7], cache.view([[1]], [(0, 1)]))
        assert bool(step([9], cache.view([[1]], [(1, 1)]))[1].isnan().all())
