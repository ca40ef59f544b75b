"""Dense public models with grouped-query attention: keys of their `config.json`, read and written.

`llama`, `mistral`, `qwen2`, `qwen3` and `smollm3`, as transformers reads them, where every layer attends to everything.
What their files ask for and is not implemented here (sliding windows, other activations, biases of the feed-forward) is
refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from indexshare.config.arguments import shown
from indexshare.config.public import (
    ARCHITECTURES,
    CARRIED,
    DTYPE_MISSING,
    LARGEST,
    MAX_LAYERS,
    check_ids,
    is_list_of_words,
    is_one_of,
    refuse_unknown,
    take_dtype,
)
from indexshare.config.rope import ALL_KINDS, RopeParameters
from indexshare.config.variant import ContentSelection, Everything, GroupedAttention, Variant

if TYPE_CHECKING:
    from indexshare.config.model import ModelConfig

# Fields of `ModelConfig` that are keys of the files, with transformers' defaults.
_COMMON: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "initializer_range": 0.02,
    "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "dtype": "bfloat16",
    "quantization_config": None,
}  # fmt: skip
_QWEN = {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What is particular to an architecture.

    Attributes:
        defaults: where they differ from `_COMMON`.
        kv_heads: key/value heads where the file names none; None for as many as query heads.
        head_dim: likewise of a head's width; None for the hidden size divided by the heads.
        theta: likewise of the rotary base.
        qk_norm: as in `GroupedAttention`.
        bias: whether `attention_bias` is a key (all four projections); if not, the biases that there always are.
        windows: key whose truth switches sliding windows on; `"sliding_window"` where only null switches them off.
        carried: more keys that are kept as they are.
    """

    defaults: Mapping[str, Any] = field(default_factory=dict)
    kv_heads: int | None = None
    head_dim: int | None = None
    theta: float = 10000.0
    qk_norm: bool = False
    bias: str = "attention_bias"
    windows: str = ""
    carried: frozenset[str] = frozenset()


FAMILIES = {
    "llama": Family(
        defaults={"bos_token_id": 1, "eos_token_id": 2},
        carried=frozenset({"is_llama_config", "transformers.js_config"}),
    ),
    "mistral": Family(
        defaults={
            "intermediate_size": 14336, "max_position_embeddings": 131072, "bos_token_id": 1, "eos_token_id": 2,
        },
        kv_heads=8, bias="none", windows="sliding_window",
    ),
    "qwen2": Family(defaults=_QWEN, kv_heads=32, bias="qkv", windows="use_sliding_window"),
    "qwen3": Family(defaults=_QWEN, kv_heads=32, head_dim=128, qk_norm=True, windows="use_sliding_window"),
    "smollm3": Family(
        defaults={
            "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16,
            "max_position_embeddings": 32768, "bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128004,
            "tie_word_embeddings": True,
        },
        kv_heads=4, theta=2e6, windows="use_sliding_window",
    ),
}  # fmt: skip
_WINDOW_KEYS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
_NO_ROPE = ("no_rope_layers", "no_rope_layer_interval")
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # keys that may only have a value that changes nothing
    "hidden_act": ("silu",), "mlp_bias": (None, False), "rope_interleaved": (None, False), "use_mrope": (None, False),
    "partial_rotary_factor": (None, 1), "tie_encoder_decoder": (None, False), "add_cross_attention": (None, False),
    "cross_attention_hidden_size": (None,), "pruned_heads": (None, {}), "use_qk_norm": (None, False),
}  # fmt: skip
_INTEGERS = ("num_key_value_heads", "head_dim", "max_window_layers", "sliding_window", "no_rope_layer_interval")
_EARLY = ("num_hidden_layers", "num_attention_heads", "hidden_size", "max_position_embeddings")


def is_one(data: Mapping[str, Any]) -> bool:
    """Whether a file's object is of one of these architectures."""
    model_type = data.get("model_type")
    return isinstance(model_type, str) and model_type in FAMILIES


def from_public(data: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `ModelConfig` from the keys of a public file.

    Raises:
        ValueError: an unknown key (the nearest known one is named), a value of the wrong type, a setting that is not
            implemented, or settings that disagree.
    """
    model_type = data["model_type"]
    family = FAMILIES[model_type]
    _check_types(data)
    bias_keys = {"attention_bias"} if family.bias == "attention_bias" else set()
    own = {*_COMMON, *bias_keys, *_INTEGERS[:2], *family.carried, "rope_parameters", "rope_theta", "rope_scaling"}
    own |= {*_NO_ROPE} if model_type == "smollm3" else set()
    refuse_unknown(data, {*own, *CARRIED, *_NEUTRAL, *_WINDOW_KEYS, "model_type", "torch_dtype"})
    values = _COMMON | dict(family.defaults) | {key: data[key] for key in _COMMON if data.get(key) is not None}
    values |= {key: data[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in data}
    if isinstance(values["eos_token_id"], list):
        values["eos_token_id"] = tuple(values["eos_token_id"])
    kept = {*CARRIED, *_NEUTRAL, *_WINDOW_KEYS, *family.carried} - {"mlp_bias", "hidden_act"}
    extra = {key: data[key] for key in data if key in kept}
    take_dtype(data, values, extra)
    for key in _EARLY:
        _integer(key, values[key])
    attention = _attention(data, family, values)
    _check_windows(data, family, values, attention)
    rope = dict(data) if _has_theta(data) else data | {"rope_theta": family.theta}
    layers = values["num_hidden_layers"]
    return values | {
        "model_type": model_type,
        "rope_parameters": RopeParameters.from_public(
            rope, context=values["max_position_embeddings"], kinds=ALL_KINDS
        ),
        "variant": Variant(attention=attention, selection=Everything()),
        "qk_rope_head_dim": attention.head_dim,
        "mlp_layer_types": ("dense",) * layers,
        "extra": extra,
    }  # fmt: skip


def to_public(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` form of one of these models."""
    family, attention = FAMILIES[config.model_type], config.variant.attention
    assert isinstance(attention, GroupedAttention)
    data: dict[str, Any] = {key: value for key, value in config.extra.items() if key != DTYPE_MISSING}
    for key in _COMMON:
        value = getattr(config, key)
        data[key] = list(value) if isinstance(value, tuple) else value
    if config.quantization_config is None:
        del data["quantization_config"]
    if family.bias == "attention_bias":
        data["attention_bias"] = attention.qkv_bias
    if family.windows == "sliding_window":
        data.setdefault("sliding_window", None)  # without the key transformers takes a window
    if config.model_type == "smollm3":
        turned = set(range(config.num_hidden_layers)) - set(attention.no_rope_layers)
        data["no_rope_layers"] = [int(layer in turned) for layer in range(config.num_hidden_layers)]
    data.update(
        architectures=[ARCHITECTURES[config.model_type]], model_type=config.model_type, hidden_act="silu",
        head_dim=attention.head_dim, num_key_value_heads=attention.kv_heads,
        rope_parameters=config.rope_parameters.to_public(),
    )  # fmt: skip
    return dict(sorted(data.items()))


def check(config: ModelConfig) -> None:
    """Refuse (ValueError) one of these architectures with anything else than what their files can say."""
    if config.model_type not in FAMILIES:
        return
    family, attention = FAMILIES[config.model_type], config.variant.attention
    selection = config.variant.selection
    if not isinstance(attention, GroupedAttention) or not isinstance(selection, Everything | ContentSelection):
        raise ValueError(
            f"model_type is {config.model_type!r}, whose attention is of the kind 'gqa', to everything or to what "
            f"indexers choose by content; the variant is {config.variant.to_public()}"
        )
    biases = {"none": (False, False), "qkv": (True, False)}.get(family.bias)
    if biases is None:
        biases = (attention.qkv_bias, attention.qkv_bias)
    expected = (family.qk_norm, *biases, config.model_type == "smollm3" or not attention.no_rope_layers)
    if (attention.qk_norm, attention.qkv_bias, attention.output_bias, True) != expected:
        raise ValueError(f"model_type is {config.model_type!r}, which has no such attention: {attention.to_public()}")
    if config.qk_rope_head_dim != attention.head_dim or "sparse" in config.mlp_layer_types:
        raise ValueError(f"model_type is {config.model_type!r}, whose heads turn whole and which has no experts")


def _attention(data: Mapping[str, Any], family: Family, values: Mapping[str, Any]) -> GroupedAttention:
    heads, hidden = values["num_attention_heads"], values["hidden_size"]
    width = data.get("head_dim") or family.head_dim
    if width is None and hidden % heads:
        raise ValueError(f"hidden_size is {hidden}, which {heads} heads do not divide; give head_dim")
    kv_heads = data.get("num_key_value_heads") if "num_key_value_heads" in data else family.kv_heads
    qkv = family.bias == "qkv" or bool(data.get("attention_bias", False))
    return GroupedAttention(
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=hidden // heads if width is None else width,
        qk_norm=family.qk_norm,
        qkv_bias=qkv,
        output_bias=qkv and family.bias != "qkv",
        no_rope_layers=_plain_layers(data, values) if data["model_type"] == "smollm3" else (),
    )


def _plain_layers(data: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[int, ...]:
    """Layers without rotation: those with a 0 in `no_rope_layers`, else every `no_rope_layer_interval`-th."""
    layers, turned = values["num_hidden_layers"], data.get("no_rope_layers")
    if turned is None:
        every = data.get("no_rope_layer_interval", 4)
        return tuple(layer for layer in range(layers) if (layer + 1) % every == 0)
    if not isinstance(turned, list) or len(turned) < layers or not all(type(n) is int and n in (0, 1) for n in turned):
        raise ValueError(f"no_rope_layers is {shown(turned)}; expected {layers} of 0 or 1")
    return tuple(layer for layer in range(layers) if turned[layer] == 0)


def _check_windows(
    data: Mapping[str, Any], family: Family, values: Mapping[str, Any], attention: GroupedAttention
) -> None:
    """Refuse windows that leave out anything: layers here attend to everything."""
    layers, context = values["num_hidden_layers"], values["max_position_embeddings"]
    kinds = data.get("layer_types")
    if kinds is not None and len(kinds) != layers:
        raise ValueError(f"layer_types has {len(kinds)} entries; expected {layers}, one a layer")
    for layer, kind in enumerate(kinds or ()):
        if kind != "full_attention":
            raise ValueError(
                f"layer {layer} of layer_types is {shown(kind)}, which is not implemented; expected 'full_attention'"
            )
    missing = 4096 if family.windows in ("sliding_window", "use_sliding_window") else None
    if data["model_type"] == "smollm3":
        missing = None
    window = data.get("sliding_window", missing)
    switched_on = family.windows != "use_sliding_window" or bool(data.get("use_sliding_window", False))
    first = data.get("max_window_layers", 28) if data["model_type"] in ("qwen2", "qwen3") else 0
    slide = [layer for layer in range(first, layers) if kinds is None and _may_slide(data, attention, layer)]
    if window is None or not switched_on or window >= context or not slide:
        return
    raise ValueError(
        f"sliding_window is {window}{'' if 'sliding_window' in data else ' where no such key is'}, shorter than the "
        f"context of {context}, and sliding windows are not implemented; max_position_embeddings {window} in "
        "config.json reads as much of a text as a window does"
    )


def _may_slide(data: Mapping[str, Any], attention: GroupedAttention, layer: int) -> bool:
    """SmolLM3's windows are those of layers without rotation."""
    return data["model_type"] != "smollm3" or layer in attention.no_rope_layers


def _has_theta(data: Mapping[str, Any]) -> bool:
    places = [data, data.get("rope_parameters") or {}, data.get("rope_scaling") or {}]
    return any(place.get("rope_theta") is not None for place in places)


def _check_types(data: Mapping[str, Any]) -> None:
    for key in ("rope_parameters", "rope_scaling", "quantization_config"):
        if data.get(key) is not None and not isinstance(data[key], dict):
            raise ValueError(f"{key} is {shown(data[key])}; expected an object")
    for key in ("layer_types", "architectures"):
        if data.get(key) is not None and not is_list_of_words(data[key]):
            raise ValueError(f"{key} is {shown(data[key])}; expected a list of words")
    for key in ("dtype", "torch_dtype"):
        if data.get(key) is not None and not isinstance(data[key], str):
            raise ValueError(f"{key} is {shown(data[key])}; expected a string")
    for key in ("attention_bias", "use_sliding_window"):
        if data.get(key) is not None and not isinstance(data[key], bool):
            raise ValueError(f"{key} is {shown(data[key])}; expected true or false")
    for key in _INTEGERS:
        if data.get(key) is not None:
            _integer(key, data[key])
    for key, allowed in _NEUTRAL.items():
        if key in data and not is_one_of(data[key], allowed):
            raise ValueError(f"{key} is {shown(data[key])}, which is not implemented; expected {allowed[-1]!r}")
    check_ids(data)


def _integer(key: str, value: Any) -> None:
    most = MAX_LAYERS if key == "num_hidden_layers" else LARGEST
    least = int(key != "max_window_layers")
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} is {shown(value)}; expected a positive integer, at most {most}")
