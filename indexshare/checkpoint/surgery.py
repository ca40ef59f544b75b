"""Models with an indexer in every layer, made from models that share: for more training, and to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from indexshare.config import ModelConfig, SharePlan
from indexshare.model.glm import GlmMoeDsa


def all_full(config: ModelConfig) -> ModelConfig:
    """The same sizes with an indexer in every layer."""
    return config.replace(indexer_types=SharePlan.all_full(config.num_hidden_layers).types)


def every_indexer(weights: dict[str, Tensor], plan: SharePlan) -> dict[str, Tensor]:
    """Weights of a model in which every layer is Full: a Shared layer gets a copy of the indexer that served it.

    Args:
        weights: of a model with this plan, by name.
        plan: which layer serves which.

    Returns:
        The tensors of `weights` themselves, and the copies in memory of their own.
    """
    copies: dict[str, Tensor] = {}
    for layer in plan.shared_layers:
        source, target = (f"layers.{number}.self_attn.indexer." for number in (plan.source(layer), layer))
        own = {target + name.removeprefix(source): weights[name].clone() for name in weights if name.startswith(source)}
        assert own, source
        copies |= own
    return weights | copies


def full_twin(model: GlmMoeDsa) -> GlmMoeDsa:
    """The same model with an indexer in every layer: the weights are those of `model` itself, not copied.

    What the copied indexers choose is of no meaning; what they cost is that of any indexer.
    """
    with torch.device("meta"):
        twin = GlmMoeDsa(all_full(model.config))
    twin.load_state_dict(every_indexer(model.state_dict(), model.plan), assign=True)
    return twin.eval()
