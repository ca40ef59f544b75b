"""Public checkpoint names and ours: every tensor a configuration implies, known before any file is read.

Ours differ from the public ones in three ways: no leading `model.`, experts stacked into two tensors per
layer, and the draft layer, public index `num_hidden_layers`, lives under `mtp.`. Public files come in two
forms: per-expert (`mlp.experts.7.gate_proj.weight`, what is published and what we write) and stacked
(`mlp.experts.gate_up_proj`, what transformers keeps in memory). Shapes are `nn.Linear` layout, [out, in].
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from indexshare.config.layers import (
    EXPERTS,
    INDEXER,
    LayerTensor,
    Role,
    draft_tensors,
    expert_stacks,
    layer_prefix,
    layer_tensors,
    outer_tensors,
)
from indexshare.config.model import ModelConfig

Names = dict[str, "TensorSpec"]
SCALE_SUFFIX = "_scale_inv"  # appended to the name of a block-FP8 weight

_IGNORED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
_INDEXER = re.compile(rf"^model\.layers\.(\d{{1,9}})\.{re.escape(INDEXER)}")
_PRIVATE = {"shared_head.head.weight": "lm_head.weight", "embed_tokens.weight": "model.embed_tokens.weight"}
# Where our name of a tensor is not the public one without `model.`.
_PUBLIC_GLUE = {"shared_head_norm.weight": "shared_head.norm.weight"}
_PUBLIC_WHOLE = {"lm_head.weight": "lm_head.weight"}
# Matrices that published files store apart for every expert, by the stack they are in.
_PER_EXPERT = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of a public checkpoint and where it goes.

    Attributes:
        public: name in the file.
        ours: name of the parameter or buffer of `GlmMoeDsa`.
        shape: shape in the file.
        row: our tensor in the table of layers.
        index: the part of our tensor it fills (indices and slices of the leading dimensions; all of it when
            empty).
    """

    public: str
    ours: str
    shape: tuple[int, ...]
    row: LayerTensor
    index: tuple[int | slice, ...] = ()

    @property
    def quantizable(self) -> bool:
        """Whether an FP8 save converts it. Loading goes by the presence of a scale tensor instead."""
        return self.row.is_product

    @property
    def float32(self) -> bool:
        """Whether it stays float32 whatever the model's type (the router's correction bias)."""
        return self.row.role is Role.ROUTER_BIAS


def _spec(row: LayerTensor, public: str, ours: str) -> TensorSpec:
    return TensorSpec(public=public, ours=ours, shape=row.shape, row=row)


def _apart(stacks: list[TensorSpec], rows: tuple[LayerTensor, ...]) -> Iterator[TensorSpec]:
    """The matrices of stacked experts one by one, in the order of published files."""
    for expert in range(rows[0].shape[0]):
        for stack, row in zip(stacks, rows, strict=True):
            folder, _, name = stack.public.rpartition(".")
            first, sizes = 0, row.split or (row.shape[1],)
            for matrix, size in zip(_PER_EXPERT[name], sizes, strict=True):
                index: tuple[int | slice, ...] = (expert, slice(first, first + size)) if row.split else (expert,)
                public = f"{folder}.{expert}.{matrix}.weight"
                yield TensorSpec(public=public, ours=stack.ours, shape=(size, row.shape[2]), row=row, index=index)
                first += size


def layer_prefixes(config: ModelConfig, layer: int) -> tuple[str, str]:
    """Prefix of a decoder layer's tensors in the file and in `GlmMoeDsa`."""
    return f"model.layers.{layer}.", layer_prefix(config, layer)


def expert_tensors(config: ModelConfig, layer: int, form: Literal["per_expert", "stacked"]) -> list[TensorSpec]:
    """The routed experts of one layer in one of the two public forms (none for a dense layer)."""
    if not config.is_moe(layer):
        return []
    public, ours = layer_prefixes(config, layer)
    rows = expert_stacks(config)
    stacks = [_spec(row, public + row.name, ours + row.name) for row in rows]
    return stacks if form == "stacked" else list(_apart(stacks, rows))


def _layer(config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
    """A layer, its experts one by one at its end; the draft layer begins with what is around its decoder layer."""
    public, ours = layer_prefixes(config, layer)
    if layer == config.num_hidden_layers:
        for row in draft_tensors(config):
            yield _spec(row, public + _PUBLIC_GLUE.get(row.name, row.name), f"mtp.{row.name}")
    for row in layer_tensors(config, layer):
        if not row.name.startswith(EXPERTS):
            yield _spec(row, public + row.name, ours + row.name)
    yield from expert_tensors(config, layer, "per_expert")


def checkpoint_tensors(config: ModelConfig) -> Names:
    """Every tensor of the published (per-expert) form by public name, in the order of the layers.

    A tied model (`tie_word_embeddings`) has no `lm_head.weight`. Indexers exist on Full layers and the draft
    layer.
    """
    before, after = outer_tensors(config)
    specs = [_spec(row, f"model.{row.name}", row.name) for row in before]
    for layer in range(config.num_layers_with_draft):
        specs.extend(_layer(config, layer))
    specs.extend(_spec(row, _PUBLIC_WHOLE.get(row.name, f"model.{row.name}"), row.name) for row in after)
    return {spec.public: spec for spec in specs}


def is_ignored(name: str) -> bool:
    """Whether old exporters wrote this tensor although it is computed (`rotary_emb.inv_freq`)."""
    return bool(_IGNORED.search(name))


def is_surplus_indexer(config: ModelConfig, name: str) -> bool:
    """Whether `name` belongs to an indexer on a Shared layer, which never runs."""
    match = _INDEXER.match(name)
    if match is None:
        return False
    layer = int(match.group(1))
    return layer < config.num_hidden_layers and not config.share_plan.is_full(layer)


def is_draft_tensor(config: ModelConfig, name: str) -> bool:
    """Whether `name` belongs to the draft layer of this configuration, whether or not it has one."""
    return name.startswith(f"model.layers.{config.num_hidden_layers}.")


def twin_in_trunk(config: ModelConfig, name: str) -> str | None:
    """The trunk tensor that `name` must repeat, or None.

    The draft layer shares the trunk's embedding and head, but DeepSeek's files repeat both in it; a tied
    model's file may repeat the embedding as `lm_head.weight`.
    """
    if config.tie_word_embeddings and name == "lm_head.weight":
        return "model.embed_tokens.weight"
    prefix = f"model.layers.{config.num_hidden_layers}."
    if not config.num_nextn_predict_layers or not name.startswith(prefix):
        return None
    twin = _PRIVATE.get(name.removeprefix(prefix))
    return "model.embed_tokens.weight" if twin and config.tie_word_embeddings else twin
