"""Models on which every convention matters, random and trained, and what they say with faults in them."""

import dataclasses
from collections.abc import Collection, Iterable
from typing import Any

import pytest
import torch

from indexshare.checkpoint.load import load_model
from indexshare.config.presets import preset
from indexshare.model.glm import GlmMoeDsa
from indexshare.verify.conventions import HYPOTHESES, RIGHT, Hypothesis
from indexshare.verify.forward import PlainForward
from indexshare.verify.observation import Observation, of_tokens

BY_NAME = {h.name: h for h in HYPOTHESES}


def some_of(values: Iterable[Any], often: Collection[Any]) -> list[Any]:
    """All as parameters of a test, those that are not in `often` among the slow ones."""
    return [value if value in often else pytest.param(value, marks=pytest.mark.slow) for value in values]


@torch.no_grad()
def small_model(seed: int = 1, **changes: object) -> GlmMoeDsa:
    """Random weights; norms, biases and correction biases away from their neutral values."""
    sizes = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 2, "index_n_heads": 8}
    model = GlmMoeDsa(preset("tiny").replace(**(sizes | changes))).initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.ndim == 1:
            scale = 0.05 if "correction" in name else 0.3
            tensor.add_(torch.randn(tensor.shape, generator=generator) * scale)
    return model.eval()


def observe(
    forward: PlainForward, ids: torch.Tensor, *faults: Hypothesis, scalars: bool = False, draft: bool = False
) -> Observation:
    """The text under the faults; `scalars`: as servers show it; `draft`: with the draft layer's predictions."""
    how = RIGHT
    for fault in faults:
        how = fault.on(how)
    trace = forward(ids, how, draft=draft or any(fault.place == "draft" for fault in faults))
    rows = None if trace.draft_logits is None else trace.draft_logits.log_softmax(-1)
    seen = Observation.of_logits("planted", ids.tolist(), trace.logits, draft_rows=rows, layers=tuple(trace.layers))
    if not scalars:
        return seen
    drafts = None if rows is None else of_tokens(rows, ids.tolist()[1:])
    return dataclasses.replace(seen, rows=None, layers=None, draft_rows=None, draft_logprobs=drafts)


@pytest.fixture(scope="session")
def model() -> GlmMoeDsa:
    return small_model()


@pytest.fixture(scope="session")
def forward(model: GlmMoeDsa) -> PlainForward:
    return PlainForward(model.config, model.state_dict())


@pytest.fixture(scope="session")
def token_ids(model: GlmMoeDsa) -> torch.Tensor:
    """Long enough that rounding scores to bfloat16 changes a choice."""
    return torch.randint(model.config.vocab_size, (64,), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def trained() -> PlainForward:
    """The formulas of `pico`, which comes with the package."""
    loaded = load_model("pico", dtype="float32")
    return PlainForward(loaded.config, loaded.state_dict())
