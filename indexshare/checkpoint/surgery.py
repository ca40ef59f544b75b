"""Models made from others, whose weights they keep: an indexer in every layer, indexers for a dense model, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from indexshare.config import ModelConfig, SharePlan
from indexshare.config.retrofitted import base_config, with_indexers
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.indexer import Indexer


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


def add_indexers(model: GlmMoeDsa, plan: SharePlan, *, heads: int, width: int, topk: int, seed: int = 0) -> GlmMoeDsa:
    """A dense model with new indexers in the Full layers of a plan, to be trained; all else is `model`'s, not copied.

    Texts of at most `topk` tokens are attended to in full, as before.

    Raises:
        ValueError: as in `with_indexers`.
    """
    config, weight = with_indexers(model.config, plan, heads=heads, width=width, topk=topk), model.embed_tokens.weight
    with torch.device("meta"):
        grown = GlmMoeDsa(config)
    new: dict[str, Tensor] = {}
    for name, module in grown.named_modules():
        if isinstance(module, Indexer):
            with torch.device("cpu"):
                fresh = Indexer(config, module.layer, config.hidden_size)
            _initialise(fresh, config.initializer_range, seed + module.layer)
            new |= {f"{name}.{own}": tensor.to(weight) for own, tensor in fresh.state_dict().items()}
    grown.load_state_dict(_own_weights(model) | new, assign=True)
    return _with_companions(grown, model)


def remove_indexers(model: GlmMoeDsa) -> GlmMoeDsa:
    """The dense model under the indexers: its weights are those of `model` itself, not copied."""
    with torch.device("meta"):
        base = GlmMoeDsa(base_config(model.config))
    base.load_state_dict({n: t for n, t in _own_weights(model).items() if ".indexer." not in n}, assign=True)
    return _with_companions(base, model)


@torch.no_grad()
def _initialise(indexer: Indexer, std: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for linear in (indexer.wq_b, indexer.wk, indexer.weights_proj):
        linear.weight.copy_(torch.randn(linear.weight.shape, generator=generator) * std)


def _own_weights(model: GlmMoeDsa) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers()) | {"lm_head.weight": model.lm_head.weight}


def _with_companions(made: GlmMoeDsa, model: GlmMoeDsa) -> GlmMoeDsa:
    """In evaluation mode, tied as its configuration says, with the files that came with the other."""
    if made.config.tie_word_embeddings:
        made.lm_head.weight = made.embed_tokens.weight
    made.companions = dict(model.companions)
    return made.eval()
