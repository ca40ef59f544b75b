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

from indexshare.config.model import ModelConfig

Names = dict[str, "TensorSpec"]
SCALE_SUFFIX = "_scale_inv"  # appended to the name of a block-FP8 weight

# Linear layers that published FP8 checkpoints keep in full precision. Loading goes by the presence of a scale
# tensor instead; this list only decides what `save_model(quantization="fp8")` converts.
_KEPT_PRECISE = frozenset({"mlp.gate", "eh_proj", "weights_proj", "embed_tokens", "lm_head"})
_IGNORED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
_INDEXER = re.compile(r"^model\.layers\.(\d+)\.self_attn\.indexer\.")
_PRIVATE = {"shared_head.head.weight": "lm_head.weight", "embed_tokens.weight": "model.embed_tokens.weight"}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One tensor of a public checkpoint and where it goes.

    Attributes:
        public: name in the file.
        ours: name of the parameter or buffer of `GlmMoeDsa`.
        shape: shape in the file.
        index: the part of our tensor it fills (indices and slices of the leading dimensions; all of it when
            empty).
        quantizable: whether an FP8 save converts it.
        float32: whether it stays float32 whatever the model's type (the router's correction bias).
    """

    public: str
    ours: str
    shape: tuple[int, ...]
    index: tuple[int | slice, ...] = ()
    quantizable: bool = False
    float32: bool = False


def _linear(name: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, into)


def _attention(config: ModelConfig, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads = config.hidden_size, config.num_attention_heads
    yield from _linear("self_attn.q_a_proj", config.q_lora_rank, hidden)
    yield "self_attn.q_a_layernorm.weight", (config.q_lora_rank,)
    yield from _linear("self_attn.q_b_proj", heads * config.qk_head_dim, config.q_lora_rank)
    yield from _linear("self_attn.kv_a_proj_with_mqa", config.latent_dim, hidden)
    yield "self_attn.kv_a_layernorm.weight", (config.kv_lora_rank,)
    yield from _linear(
        "self_attn.kv_b_proj", heads * (config.qk_nope_head_dim + config.v_head_dim), config.kv_lora_rank
    )
    yield from _linear("self_attn.o_proj", hidden, heads * config.v_head_dim)
    if config.attention_bias:
        yield "self_attn.q_a_proj.bias", (config.q_lora_rank,)
        yield "self_attn.kv_a_proj_with_mqa.bias", (config.latent_dim,)
        yield "self_attn.o_proj.bias", (hidden,)
    if layer == config.num_hidden_layers or config.share_plan.is_full(layer):
        width = config.index_head_dim
        yield from _linear("self_attn.indexer.wq_b", config.index_n_heads * width, config.q_lora_rank)
        yield from _linear("self_attn.indexer.wk", width, hidden)
        yield "self_attn.indexer.k_norm.weight", (width,)
        yield "self_attn.indexer.k_norm.bias", (width,)
        yield from _linear("self_attn.indexer.weights_proj", config.index_n_heads, hidden)


def _mlp(prefix: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _linear(f"{prefix}.gate_proj", inner, hidden)
    yield from _linear(f"{prefix}.up_proj", inner, hidden)
    yield from _linear(f"{prefix}.down_proj", hidden, inner)


def _layer(config: ModelConfig, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names (without the layer prefix) and shapes of everything in a layer but its routed experts."""
    hidden = config.hidden_size
    yield "input_layernorm.weight", (hidden,)
    yield from _attention(config, layer)
    yield "post_attention_layernorm.weight", (hidden,)
    if not config.is_moe(layer):
        yield from _mlp("mlp", hidden, config.intermediate_size)
        return
    yield "mlp.gate.weight", (config.n_routed_experts, hidden)
    yield "mlp.gate.e_score_correction_bias", (config.n_routed_experts,)
    if config.n_shared_experts:
        yield from _mlp("mlp.shared_experts", hidden, config.moe_intermediate_size * config.n_shared_experts)


def _spec(public: str, ours: str, shape: tuple[int, ...], index: tuple[int | slice, ...] = ()) -> TensorSpec:
    module = public.removesuffix(".weight")
    is_linear = len(shape) > 1 and not any(module.endswith(name) for name in _KEPT_PRECISE)
    return TensorSpec(
        public=public, ours=ours, shape=shape, index=index, quantizable=is_linear,
        float32=public.endswith("e_score_correction_bias"),
    )  # fmt: skip


def _experts(config: ModelConfig, public: str, ours: str, stacked: bool) -> Iterator[TensorSpec]:
    count, hidden, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
    gate_up, down = f"{ours}gate_up_proj", f"{ours}down_proj"
    if stacked:
        yield _spec(f"{public}gate_up_proj", gate_up, (count, 2 * inner, hidden))
        yield _spec(f"{public}down_proj", down, (count, hidden, inner))
        return
    for expert in range(count):
        yield _spec(f"{public}{expert}.gate_proj.weight", gate_up, (inner, hidden), (expert, slice(0, inner)))
        yield _spec(f"{public}{expert}.up_proj.weight", gate_up, (inner, hidden), (expert, slice(inner, 2 * inner)))
        yield _spec(f"{public}{expert}.down_proj.weight", down, (hidden, inner), (expert,))


def layer_prefixes(config: ModelConfig, layer: int) -> tuple[str, str]:
    """Prefix of a decoder layer's tensors in the file and in `GlmMoeDsa`."""
    is_draft = layer == config.num_hidden_layers
    return f"model.layers.{layer}.", "mtp.layer." if is_draft else f"layers.{layer}."


def expert_tensors(config: ModelConfig, layer: int, form: Literal["per_expert", "stacked"]) -> list[TensorSpec]:
    """The routed experts of one layer in one of the two public forms (none for a dense layer)."""
    if not config.is_moe(layer):
        return []
    public, ours = layer_prefixes(config, layer)
    return list(_experts(config, f"{public}mlp.experts.", f"{ours}mlp.experts.", form == "stacked"))


def _glue(config: ModelConfig) -> Iterator[TensorSpec]:
    """The draft layer's own four tensors around its decoder layer."""
    prefix, hidden = f"model.layers.{config.num_hidden_layers}.", config.hidden_size
    yield _spec(f"{prefix}enorm.weight", "mtp.enorm.weight", (hidden,))
    yield _spec(f"{prefix}hnorm.weight", "mtp.hnorm.weight", (hidden,))
    yield _spec(f"{prefix}eh_proj.weight", "mtp.eh_proj.weight", (hidden, 2 * hidden))
    yield _spec(f"{prefix}shared_head.norm.weight", "mtp.shared_head_norm.weight", (hidden,))


def checkpoint_tensors(config: ModelConfig) -> Names:
    """Every tensor of the published (per-expert) form by public name, in the order of the layers.

    A tied model (`tie_word_embeddings`) has no `lm_head.weight`. Indexers exist on Full layers and the draft
    layer.
    """
    vocab = (config.vocab_size, config.hidden_size)
    specs = [_spec("model.embed_tokens.weight", "embed_tokens.weight", vocab)]
    for layer in range(config.num_layers_with_draft):
        public, ours = layer_prefixes(config, layer)
        if layer == config.num_hidden_layers:
            specs.extend(_glue(config))
        specs.extend(_spec(public + name, ours + name, shape) for name, shape in _layer(config, layer))
        specs.extend(expert_tensors(config, layer, "per_expert"))
    specs.append(_spec("model.norm.weight", "norm.weight", (config.hidden_size,)))
    if not config.tie_word_embeddings:
        specs.append(_spec("lm_head.weight", "lm_head.weight", vocab))
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
