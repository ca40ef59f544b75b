"""Two small models on which every convention matters: groups of experts, an irregular plan, a draft layer."""

import pytest
import torch

from indexshare.config.presets import preset
from indexshare.model.glm import GlmMoeDsa
from indexshare.verify.forward import PlainForward


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
