"""The public `config.json`: its keys, their older and other spellings, and what each may hold.

Reads `glm_moe_dsa` (GLM-5, 5.1, 5.2) and `deepseek_v32` (DeepSeek-V3.2) as transformers reads them; where one setting
has two spellings that do not agree, or a value asks for something that is not implemented, the key is named. Dense
models are read by `families.py`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from indexshare.config.arguments import shown
from indexshare.config.generation import GENERATION_KEYS
from indexshare.config.rope import RopeParameters
from indexshare.config.share_plan import SharePlan
from indexshare.config.variant import KEY as VARIANT
from indexshare.config.variant import Variant

ARCHITECTURES = {
    "glm_moe_dsa": "GlmMoeDsaForCausalLM", "deepseek_v32": "DeepseekV32ForCausalLM", "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}  # fmt: skip
SCHEDULE = ("index_topk_pattern", "index_topk_freq", "index_skip_topk_offset")
LARGEST = 2**31 - 1  # of any whole number
MAX_LAYERS = 4096
DTYPE_MISSING = "_dtype_missing"  # among the keys carried along: the file does not say how its weights are stored

# Where the two architectures' published defaults differ; everything else is a default of `ModelConfig`.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "glm_moe_dsa": {"indexer_rope_interleave": True},
    "deepseek_v32": {
        "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
        "num_attention_heads": 128, "q_lora_rank": 1536, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 8,
        "topk_group": 4, "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "index_n_heads": 64,
        "indexer_rope_interleave": False,
    },
}  # fmt: skip

# Keys of public files that carry no information for us: kept as they are and written back. The settings of generation
# are among them because they stood here before they had a file of their own.
CARRIED = GENERATION_KEYS | {
    "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout", "attn_implementation",
    "auto_map", "aux_loss_alpha", "chunk_size_feed_forward", "decoder_start_token_id", "ep_size", "finetuning_task",
    "id2label", "indexer_scale_fmt", "is_decoder", "is_encoder_decoder", "label2id", "moe_router_dtype", "name_or_path",
    "num_labels", "output_attentions", "output_hidden_states", "output_router_logits", "prefix", "pretraining_tp",
    "problem_type", "return_dict", "router_aux_loss_coef", "scale_fmt", "sep_token_id", "seq_aux",
    "task_specific_params", "tf_legacy_loss", "tokenizer_class", "torchscript", "transformers_version", "use_bfloat16",
    "use_cache",
}  # fmt: skip
# Keys whose value follows from other fields and is derived on writing. `head_dim` is ignored on reading (GLM-5.2's is
# misleading), so is `first_k_dense_replace` beside `mlp_layer_types`: transformers writes its default there.
_DERIVED = frozenset(
    ["head_dim", "qk_head_dim", "num_key_value_heads", "layer_types", "num_experts", "num_local_experts"]
)
# Keys that may only have the value we implement, and are written with it.
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",), "scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",), "moe_layer_freq": (1,),
    "rope_interleave": (True,), "mlp_bias": (False,),
}  # fmt: skip
# Keys that may only have a value that changes nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (None, 1), "sliding_window": (None,), "use_sliding_window": (None, False),
    "tie_encoder_decoder": (None, False), "add_cross_attention": (None, False), "cross_attention_hidden_size": (None,),
    "pruned_heads": (None, {}), "use_qk_norm": (None, False),
}  # fmt: skip
_OTHER_SPELLINGS = {"torch_dtype", "first_k_dense_replace", "rope_theta", "rope_scaling", VARIANT}
_MAY_BE_NULL = {  # those that transformers lets be null, and those that it does not know
    "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "indexer_types", "mlp_layer_types", "quantization_config",
    "rope_parameters", "num_nextn_predict_layers", "index_share_for_mtp_iteration", "indexer_rope_interleave",
}  # fmt: skip
# Fields from which others are made before all are checked.
_NEEDED_EARLY = (
    "num_hidden_layers", "max_position_embeddings", "num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim"
)  # fmt: skip
_LAYER_TYPES = {"indexed_attention", "deepseek_sparse_attention", "full_attention"}
IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def from_public(data: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `ModelConfig` from the keys of a public file.

    Args:
        data: the file's object.
        defaults: fields of `ModelConfig` that are keys of the file, with their defaults.

    Raises:
        ValueError: another architecture, an unknown key (the nearest known one is named), a value of the wrong type, a
            setting that is not implemented, or two spellings that disagree.
    """
    _check_types(data)
    model_type = data.get("model_type")
    if model_type not in ARCHITECTURES:
        said = "missing" if model_type is None else shown(model_type)
        raise ValueError(f"model_type is {said}; this package implements {sorted(ARCHITECTURES)}")
    _refuse_unknown(data, defaults)
    values = dict(defaults) | _DEFAULTS[model_type]
    for key in defaults:
        if key in data and data[key] is None and key not in _MAY_BE_NULL:
            raise ValueError(f"{key} is null; expected a value, or no such key")
        if data.get(key) is not None:
            values[key] = data[key]
    values |= {key: tuple(data[key]) if isinstance(data[key], list) else data[key] for key in IDS if key in data}
    extra = {key: data[key] for key in data if key in CARRIED or key in _NEUTRAL or key in SCHEDULE}
    take_dtype(data, values, extra)
    _take_expert_count(data, values)
    values["rope_parameters"] = RopeParameters.from_public(data, context=values["max_position_embeddings"])
    values["variant"] = Variant.from_public(data.get(VARIANT, {}))
    _take_layers(data, values)
    _check_derived(data, values)
    return values | {"extra": extra}


def schedule(layers: int, types: Any, extra: dict[str, Any]) -> SharePlan:
    """The plan of all spellings of the sharing schedule; ValueError where they disagree."""
    pattern, freq, offset = (extra.get(key) for key in SCHEDULE)
    return SharePlan.from_spellings(layers, indexer_types=types, pattern=pattern, freq=freq, offset=offset)


def _take_layers(data: dict[str, Any], values: dict[str, Any]) -> None:
    """Kinds of the layers, from whichever spelling they are in."""
    layers = values["num_hidden_layers"]
    if layers > MAX_LAYERS:
        raise ValueError(f"num_hidden_layers is {layers}; expected at most {MAX_LAYERS}")
    values["indexer_types"] = schedule(layers, data.get("indexer_types"), data).types
    dense = min(data.get("first_k_dense_replace", 3), layers)
    kinds = data.get("mlp_layer_types")
    values["mlp_layer_types"] = ("dense",) * dense + ("sparse",) * (layers - dense) if kinds is None else tuple(kinds)


def take_dtype(data: dict[str, Any], values: dict[str, Any], extra: dict[str, Any]) -> None:
    """`torch_dtype` is the older name of `dtype`, which comes first where both are there."""
    dtype = data.get("dtype") or data.get("torch_dtype")
    if dtype is None:
        extra[DTYPE_MISSING] = True
    else:
        values["dtype"] = dtype


def _take_expert_count(data: dict[str, Any], values: dict[str, Any]) -> None:
    """`num_experts` and `num_local_experts` are other names of `n_routed_experts`; two that disagree are refused."""
    names = ("n_routed_experts", "num_experts", "num_local_experts")
    said = {key: data[key] for key in names if data.get(key) is not None}
    for key, count in said.items():
        first = next(iter(said))
        if count != said[first]:
            raise ValueError(f"{key} is {count}, but {first} is {said[first]}; keep one")
        values["n_routed_experts"] = count


def _check_derived(data: dict[str, Any], values: dict[str, Any]) -> None:
    """Keys that follow from others must follow from them."""
    width, heads = values["qk_nope_head_dim"] + values["qk_rope_head_dim"], values["num_attention_heads"]
    for key, expected, why in (
        ("qk_head_dim", width, "qk_nope_head_dim + qk_rope_head_dim"),
        ("num_key_value_heads", heads, "num_attention_heads (latent attention has a key for each head)"),
    ):
        if data.get(key) not in (None, expected):
            raise ValueError(f"{key} is {data[key]}, but {why} is {expected}")
    for layer, kind in enumerate(data.get("layer_types") or ()):
        if kind not in _LAYER_TYPES:
            raise ValueError(f"layer {layer} of layer_types is {shown(kind)}; expected one of {sorted(_LAYER_TYPES)}")


def _check_types(data: dict[str, Any]) -> None:
    """Each key of the file of the type that it has there, before anything is made of it; fields check themselves."""
    lists = ("indexer_types", "mlp_layer_types", "layer_types", "architectures")
    objects = ("rope_parameters", "rope_scaling", "quantization_config")
    integers = (
        "index_topk_freq", "index_skip_topk_offset", "first_k_dense_replace", "num_experts", "num_local_experts",
        "qk_head_dim", "head_dim", "num_key_value_heads", *_NEEDED_EARLY,
    )  # fmt: skip
    for keys, holds, expected in (
        (lists, is_list_of_words, "a list of words"),
        (objects, lambda value: isinstance(value, dict), "an object"),
        (integers, lambda value: type(value) is int and 0 <= value <= LARGEST, "an integer"),
        (("model_type", "dtype", "torch_dtype"), lambda value: isinstance(value, str), "a string"),
        (
            ("index_topk_pattern",),
            lambda value: isinstance(value, str) or is_list_of_words(value),
            "a string of F and S",
        ),
    ):
        for key in keys:
            if data.get(key) is not None and not holds(data[key]):
                raise ValueError(f"{key} is {shown(data[key])}; expected {expected}")
    if "first_k_dense_replace" in data and data["first_k_dense_replace"] is None:
        raise ValueError("first_k_dense_replace is null; expected a value, or no such key")
    for key, allowed in FIXED.items():
        if key in data and not is_one_of(data[key], allowed):
            raise ValueError(f"{key} is {shown(data[key])}; this package implements {list(allowed)}")
    for key, allowed in _NEUTRAL.items():
        if key in data and not is_one_of(data[key], allowed):
            raise ValueError(f"{key} is {shown(data[key])}, which is not implemented; expected {allowed[-1]!r}")
    check_ids(data)


def check_ids(data: Mapping[str, Any]) -> None:
    """Refuse (ValueError) special ids that are none."""
    for key in IDS:
        value = data.get(key)
        ids = value if isinstance(value, list) and key == "eos_token_id" else [] if value is None else [value]
        if not all(type(i) is int and 0 <= i <= LARGEST for i in ids):
            also = ", or a list of them" if key == "eos_token_id" else ""
            raise ValueError(f"{key} is {shown(value)}; expected an id of 0 or more{also}")


def is_list_of_words(value: Any) -> bool:
    """Whether it is a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether it is one of the values, a number being no truth value."""
    return any(value == good and isinstance(value, bool) == isinstance(good, bool) for good in allowed)


def _refuse_unknown(data: dict[str, Any], own: Iterable[str]) -> None:
    refuse_unknown(data, {*own, *CARRIED, *_DERIVED, *FIXED, *_NEUTRAL, *SCHEDULE, *_OTHER_SPELLINGS})


def refuse_unknown(data: Iterable[str], known: set[str]) -> None:
    """ValueError for a key that means nothing here; the nearest known one is named."""
    for key in sorted(set(data) - known):
        near = difflib.get_close_matches(key[:100], sorted(known), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; remove it if it does not change the model"
        raise ValueError(f"unknown key {shown(key)} in the configuration{hint}")
