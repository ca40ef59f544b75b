"""Dense models that were given indexers: what their own `config.json` says, with the base's inside.

The directory of such a model has a `model_type` of its own, so that no program takes it for the base. Attention turns
and projects as in the base; Full layers have an indexer, Shared layers reuse its choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from indexshare.config import families
from indexshare.config.arguments import shown
from indexshare.config.public import LARGEST, is_list_of_words, refuse_unknown
from indexshare.config.share_plan import SharePlan
from indexshare.config.variant import ContentSelection, Everything, Variant

if TYPE_CHECKING:
    from indexshare.config.model import ModelConfig

MODEL_TYPE = "indexshare"
ARCHITECTURE = "IndexShareForCausalLM"
_BASE, _PLAN = "base", "indexer_types"
_SIZES = ("index_n_heads", "index_head_dim", "index_topk")


def is_one(data: Mapping[str, Any]) -> bool:
    """Whether a file's object is of such a model."""
    return data.get("model_type") == MODEL_TYPE


def from_public(data: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `ModelConfig` from the keys of the file.

    Raises:
        ValueError: a key is missing or unknown, or the base is no dense model that is read here.
    """
    refuse_unknown(data, {"model_type", "architectures", "transformers_version", _BASE, _PLAN, *_SIZES})
    base, plan = data.get(_BASE), data.get(_PLAN)
    if not isinstance(base, dict) or not families.is_one(base):
        kind = shown(base.get("model_type") if isinstance(base, dict) else base)
        raise ValueError(f"{_BASE} is {kind}; expected the configuration of a {', '.join(families.FAMILIES)} model")
    if not is_list_of_words(plan):
        raise ValueError(f"{_PLAN} is {'missing' if plan is None else shown(plan)}; expected a list of words")
    values = families.from_public(base)
    for key in _SIZES:
        if type(data.get(key)) is not int or not 1 <= data[key] <= LARGEST:
            raise ValueError(f"{key} is {shown(data.get(key))}; expected a positive integer, at most {LARGEST}")
        values[key] = data[key]
    layers = values["num_hidden_layers"]
    types = SharePlan.from_spellings(layers, indexer_types=plan).types
    return values | _selecting(values["variant"]) | {_PLAN: types}


def to_public(config: ModelConfig) -> dict[str, Any]:
    """The file's object."""
    own = {key: getattr(config, key) for key in _SIZES}
    return {
        "architectures": [ARCHITECTURE], _BASE: base_config(config).to_dict(), **own,
        _PLAN: list(config.indexer_types), "model_type": MODEL_TYPE,
    }  # fmt: skip


def with_indexers(config: ModelConfig, plan: SharePlan, *, heads: int, width: int, topk: int) -> ModelConfig:
    """The configuration of a dense model with indexers in the Full layers of a plan.

    Args:
        config: of the base.
        plan: one entry for each of its layers.
        heads, width: of each indexer; a head holds at least the base's rotary values.
        topk: tokens that a query attends to at most.

    Raises:
        ValueError: it is no dense model of the families, or a size does not fit.
    """
    if config.model_type not in families.FAMILIES or config.selects:
        raise ValueError(f"a {config.model_type} model selects already; expected a dense model to give indexers to")
    if plan.num_layers != config.num_hidden_layers:
        raise ValueError(f"the plan has {plan.num_layers} layers, the model {config.num_hidden_layers}")
    return config.replace(
        index_n_heads=heads, index_head_dim=width, index_topk=topk, indexer_types=plan.types,
        **_selecting(config.variant),
    )  # fmt: skip


def base_config(config: ModelConfig) -> ModelConfig:
    """That of the dense model under the indexers."""
    variant = Variant(attention=config.variant.attention, selection=Everything())
    every = SharePlan.all_full(config.num_hidden_layers).types
    plain = {name: type(config).__dataclass_fields__[name].default for name in (*_SIZES, "indexer_rope_interleave")}
    return config.replace(variant=variant, indexer_types=every, **plain)


def _selecting(variant: Variant) -> dict[str, Any]:
    """Fields of a configuration whose layers choose; indexers turn by halves, as the base does."""
    chosen = Variant(attention=variant.attention, selection=ContentSelection())
    return {"variant": chosen, "indexer_rope_interleave": False}
