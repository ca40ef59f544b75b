"""Dense models in GGUF files: their keys as a public `config.json`, their tensors under the public names.

llama.cpp keeps the rows of query and key projections of `llama` and `smollm3` in another order: values that turn
together are neighbours there, and half a head apart here.
"""

from __future__ import annotations

import re
import struct
from typing import Any

from indexshare.config.arguments import shown
from indexshare.config.gguf_file import GgufFile
from indexshare.config.public import ARCHITECTURES
from indexshare.config.rope import RopeParameters

# Public architecture by llama.cpp's name; `mistral` is written as `llama` there.
MODELS = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "smollm3": "smollm3"}
PAIRED = ("llama", "smollm3")  # those whose rotary pairs are neighbours
ROPE_FACTORS = "rope_freqs.weight"
_KNOWN = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.layer_norm_rms_epsilon",
    "attention.sliding_window", "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.finetuned", "vocab_size", "expert_count",
    "expert_used_count", "tensor_data_layout",
}  # fmt: skip
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}  # fmt: skip
_PARTS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_BLOCK = re.compile(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)")
_PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class _Keys:
    """The keys of one architecture, each asked for by its type."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self.keys, self.prefix = file.keys, architecture + "."
        for key in sorted(self.keys):
            if key.startswith(self.prefix) and key.removeprefix(self.prefix) not in _KNOWN:
                raise ValueError(f"the key {shown(key)} is not known, and may change the model; it is not read")

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.keys.get(self.prefix + name, default)
        if isinstance(value, list) and value and value == value[:1] * len(value):  # one a layer
            value = value[0]
        if type(value) is not int or value < 0:
            raise ValueError(f"{self.prefix}{name} is {_said(value)}; expected a whole number, the same in all layers")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.keys.get(self.prefix + name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.prefix}{name} is {_said(value)}; expected a number")
        return _shortest(value)

    def word(self, name: str, default: str) -> str:
        value = self.keys.get(self.prefix + name, default)
        if not isinstance(value, str):
            raise ValueError(f"{self.prefix}{name} is {_said(value)}; expected a word")
        return value


def architecture_of(file: GgufFile) -> str:
    """llama.cpp's name of the architecture.

    Raises:
        ValueError: one that is not read.
    """
    name = file.keys.get("general.architecture")
    if not isinstance(name, str) or name not in MODELS:
        raise ValueError(f"general.architecture is {_said(name)}; GGUF files are read of {', '.join(MODELS)}")
    return name


def public_config(file: GgufFile) -> dict[str, Any]:
    """The `config.json` that says the same.

    Raises:
        ValueError: a key is missing, of the wrong type, not known, or asks for something that is not implemented.
    """
    architecture = architecture_of(file)
    keys = _Keys(file, architecture)
    heads, hidden = keys.integer("attention.head_count"), keys.integer("embedding_length")
    if heads < 1 or hidden < 1:
        raise ValueError(
            f"{architecture}.attention.head_count is {heads}, embedding_length {hidden}; expected 1 or more"
        )
    width = keys.integer("attention.key_length", hidden // heads)
    for name, expected in (("attention.value_length", width), ("rope.dimension_count", width), ("expert_count", 0)):
        if keys.integer(name, expected) != expected:
            raise ValueError(
                f"{architecture}.{name} is {keys.integer(name)}, which is not implemented; expected {expected}"
            )
    context, window = keys.integer("context_length"), keys.integer("attention.sliding_window", 0)
    if 0 < window < context:
        raise ValueError(f"{architecture}.attention.sliding_window is {window}; sliding windows are not implemented")
    model_type = MODELS[architecture]
    data: dict[str, Any] = {
        "architectures": [ARCHITECTURES[model_type]], "model_type": model_type, "hidden_act": "silu",
        "vocab_size": _vocabulary(file, keys), "hidden_size": hidden, "head_dim": width,
        "intermediate_size": keys.integer("feed_forward_length"), "num_hidden_layers": keys.integer("block_count"),
        "num_attention_heads": heads, "num_key_value_heads": keys.integer("attention.head_count_kv", heads),
        "max_position_embeddings": context, "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(file, keys, width), "tie_word_embeddings": "output.weight" not in file.tensors,
        "dtype": _PLAIN.get(max(file.tensors.values(), key=lambda t: t.end - t.begin).kind, "float32"),
    }  # fmt: skip
    if model_type != "qwen2":
        data["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        data[f"{ours}_token_id"] = file.keys.get(f"tokenizer.ggml.{theirs}_token_id")
    return data


def public_names(file: GgufFile) -> dict[str, tuple[str, int]]:
    """By llama.cpp's name of each tensor, the public one and the heads whose rows are in another order (0 for none).

    Names that mean nothing here stay as they are.
    """
    architecture = architecture_of(file)
    keys, found = _Keys(file, architecture), {}
    heads = keys.integer("attention.head_count")
    counts = {"attn_q": heads, "attn_k": keys.integer("attention.head_count_kv", heads)}
    for name in file.tensors:
        block = _BLOCK.fullmatch(name)
        if block is None or block[2] not in _PARTS:
            if name != ROPE_FACTORS:  # read with the keys
                found[name] = (_OUTER.get(name, name), 0)
            continue
        turned = counts.get(block[2], 0) if architecture in PAIRED else 0
        found[name] = (f"model.layers.{block[1]}.{_PARTS[block[2]]}.{block[3]}", turned)
    return found


def _vocabulary(file: GgufFile, keys: _Keys) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ValueError("there is no tensor token_embd.weight; the file is not whole, or one of several parts")
    entries = embedding.shape[0]
    if keys.integer("vocab_size", entries) != entries:
        raise ValueError(
            f"{keys.prefix}vocab_size is {keys.integer('vocab_size')}, token_embd.weight has {entries} rows"
        )
    return entries


def _rope(file: GgufFile, keys: _Keys, width: int) -> dict[str, Any]:
    theta, kind = keys.number("rope.freq_base", 10000.0), keys.word("rope.scaling.type", "none")
    data: dict[str, Any] = {"rope_theta": theta, "rope_type": "default" if kind == "none" else kind}
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"{keys.prefix}rope.scaling.type is {_said(kind)}; expected none, linear or yarn")
    if kind != "none":
        data["factor"] = keys.number("rope.scaling.factor")
    if kind == "yarn":
        data["original_max_position_embeddings"] = keys.integer("rope.scaling.original_context_length")
    if ROPE_FACTORS not in file.tensors:
        return data
    if kind != "none":
        raise ValueError(f"{ROPE_FACTORS} beside rope.scaling.type {kind!r} is not implemented")
    return _by_factors(file.floats(ROPE_FACTORS), theta, width)


def _by_factors(factors: list[float], theta: float, width: int) -> dict[str, Any]:
    """Llama 3's scaling, of which the file has the factor of every frequency alone."""
    plain = RopeParameters(rope_theta=theta).inverse_frequencies(width)
    scaled = RopeParameters(
        rope_theta=theta, rope_type="llama3", factor=max(1.0, *factors), original_max_position_embeddings=8192
    )
    expected = [a / b for a, b in zip(plain, scaled.inverse_frequencies(width), strict=True)]
    if len(factors) != len(plain) or any(abs(a / b - 1) > 1e-3 for a, b in zip(factors, expected, strict=True)):
        raise ValueError(f"{ROPE_FACTORS} is not the scaling of Llama 3.1 (1 to 4 turns over 8,192 tokens)")
    return scaled.to_public()


def _shortest(value: float) -> float:
    """The shortest number that is the same in float32, in which the file has it."""
    for digits in range(1, 18):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


def _said(value: Any) -> str:
    return "missing" if value is None else shown(value)
