"""Small GGUF files of dense models, written with the library of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from indexshare.config import ModelConfig
from indexshare.config.grouped import settings_of
from indexshare.model.glm import GlmMoeDsa

SIZES: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "rope_theta": 1e4, "rms_norm_eps": 1e-5, "head_dim": 16,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "dtype": "float32",
}  # fmt: skip
PARTS = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
OUTER = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def dense(model_type: str, **changes: Any) -> GlmMoeDsa:
    """A random model."""
    model = GlmMoeDsa(ModelConfig.from_dict(SIZES | {"model_type": model_type} | changes)).initialise(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.normal_(1.0, 0.3)
    return model.eval()


def ggml_name(name: str) -> str:
    """llama.cpp's name of a parameter."""
    outer, _, kind = name.rpartition(".")
    if outer in OUTER:
        return f"{OUTER[outer]}.{kind}"
    _, layer, rest = name.split(".", 2)
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{PARTS[part]}.{kind}"


def neighbours(values: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows as llama.cpp's converter orders them (`LlamaModel.permute`)."""
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def hyperparameters(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """Keys as llama.cpp's converter writes them."""
    own = settings_of(config)
    return {
        f"{architecture}.{name}": value
        for name, value in {
            "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
            "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads, "attention.head_count_kv": own.kv_heads,
            "attention.key_length": own.head_dim, "attention.value_length": own.head_dim,
            "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
            "rope.freq_base": config.rope_parameters.rope_theta, "rope.dimension_count": own.head_dim,
            "vocab_size": config.vocab_size,
        }.items()
    } | {
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 2,
    }  # fmt: skip


def write(
    path: Path, model: GlmMoeDsa, architecture: str, *, kind: str = "F32", keys: dict[str, Any] | None = None,
    tensors: dict[str, torch.Tensor] | None = None, leave_out: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    """Write a model; `keys` and `tensors` are added or replace others (None leaves a key out)."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (hyperparameters(config, architecture) | (keys or {})).items():
        _add(writer, key, value)
    named = {ggml_name(name): tensor.detach() for name, tensor in model.named_parameters()}
    heads = {"attn_q": config.num_attention_heads, "attn_k": settings_of(config).kv_heads}
    for name, values in (named | (tensors or {})).items():
        part = name.split(".")[2] if name.startswith("blk.") else ""
        if architecture in ("llama", "smollm3") and part in heads:
            values = neighbours(values, heads[part])
        if name not in leave_out:
            _add_tensor(writer, name, values, kind if values.dim() == 2 else "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _add_tensor(writer: Any, name: str, values: torch.Tensor, kind: str) -> None:
    plain = np.ascontiguousarray(values.float().numpy())
    if kind == "F32":
        writer.add_tensor(name, plain)
    else:
        raw = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(plain, raw), raw_dtype=raw)
