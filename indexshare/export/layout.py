"""The tensors of a GGUF file for llama.cpp, and how each is made from those of a checkpoint.

Names and shapes are those that `src/models/glm-dsa.cpp` (and `deepseek32.cpp`) of llama.cpp ask for. Shapes here are in
numpy's order, `[out, in]`; GGUF lists them the other way round.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from indexshare.checkpoint.names import TensorSpec, checkpoint_tensors, expert_tensors
from indexshare.config.layers import EXPERTS, INDEXER, LayerTensor, Role
from indexshare.config.model import ModelConfig
from indexshare.export.llama_cpp import index_head

_LAYER = "model.layers."
_WHOLE_MODEL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",  # absent from a tied model; llama.cpp then takes token_embd
}
_IN_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.indexer.wq_b.weight": "indexer.attn_q_b.weight",
    "self_attn.indexer.wk.weight": "indexer.attn_k.weight",
    "self_attn.indexer.k_norm.weight": "indexer.k_norm.weight",
    "self_attn.indexer.k_norm.bias": "indexer.k_norm.bias",
    "self_attn.indexer.weights_proj.weight": "indexer.proj.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj.weight": "ffn_gate_shexp.weight",
    "mlp.shared_experts.up_proj.weight": "ffn_up_shexp.weight",
    "mlp.shared_experts.down_proj.weight": "ffn_down_shexp.weight",
    # Of the draft layer, which is the last block; its embedding and head are the trunk's, in llama.cpp as here.
    "eh_proj.weight": "nextn.eh_proj.weight",
    "enorm.weight": "nextn.enorm.weight",
    "hnorm.weight": "nextn.hnorm.weight",
    "shared_head.norm.weight": "nextn.shared_head_norm.weight",
}
# Matrices that llama.cpp's own converter keeps in float32: a rounded router or head weight flips near-tied choices.
_KEPT_PRECISE = ("ffn_gate_inp.weight", "indexer.proj.weight")


class Source(Protocol):
    """Where values come from: tensors by public name, seen as matrices of rows (all leading dimensions flattened)."""

    def whole(self, name: str) -> Tensor:
        """The tensor in its own shape."""

    def rows(self, name: str, first: int, count: int) -> Iterator[Tensor]:
        """Rows `first ... first + count - 1` in order, in pieces `[n, C]` that fit in memory."""


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        name: in the file.
        shape: outermost dimension first.
        sources: public names of the tensors it is made of.
        values: its rows in order, in pieces `[n, shape[-1]]`.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    values: Callable[[Source], Iterator[Tensor]]

    @property
    def float32(self) -> bool:
        """Whether it stays float32 in every type of file: vectors (norms, biases) and two small matrices."""
        return len(self.shape) == 1 or self.name.endswith(_KEPT_PRECISE)


def gguf_tensors(config: ModelConfig, stored: Collection[str]) -> list[GgufTensor]:
    """Every tensor of the file in the order of the layers.

    Args:
        config: of the checkpoint.
        stored: names in the checkpoint's files, which tell in which of the two forms a layer's experts are.
    """
    found: list[GgufTensor] = []
    for public, spec in checkpoint_tensors(config).items():
        if public in _WHOLE_MODEL:
            found.append(_copy(_WHOLE_MODEL[public], spec))
            continue
        number, _, rest = public.removeprefix(_LAYER).partition(".")
        block = f"blk.{number}."
        if spec.row.role is Role.LATENT_UP:
            found.extend(_heads(block, spec))
        elif spec.row.part == "indexer":
            found.append(_indexer(config, _copy(block + _IN_LAYER[rest], spec), spec.row))
        elif spec.row.role is not Role.EXPERTS:
            found.append(_copy(block + _IN_LAYER[rest], spec))
        elif rest == f"{EXPERTS}0.gate_proj.weight":
            found.extend(_experts(config, int(number), stored))
    return found


def _copy(name: str, spec: TensorSpec) -> GgufTensor:
    count = 1
    for size in spec.shape[:-1]:
        count *= size
    return GgufTensor(
        name=name,
        shape=spec.shape,
        sources=(spec.public,),
        values=lambda source: source.rows(spec.public, 0, count),
    )


def _heads(block: str, spec: TensorSpec) -> Iterator[GgufTensor]:
    """The up-projection as absorbed attention uses it: per head, latents from queries, and values from latents.

    Its rows are, per head, those of the key's plain part, then those of the value. The key's are transposed: ggml
    multiplies along the last dimension, which is then the query's.
    """
    public, heads, latent = spec.public, spec.row.heads, spec.row.shape[1]
    plain, value = spec.row.split

    def by_head(source: Source) -> Tensor:
        return source.whole(public).view(heads, plain + value, latent)

    def keys(source: Source) -> Iterator[Tensor]:
        yield by_head(source)[:, :plain].transpose(1, 2).reshape(-1, plain)

    def values(source: Source) -> Iterator[Tensor]:
        yield by_head(source)[:, plain:].reshape(-1, latent)

    yield GgufTensor(name=block + "attn_k_b.weight", shape=(heads, latent, plain), sources=(public,), values=keys)
    yield GgufTensor(name=block + "attn_v_b.weight", shape=(heads, value, latent), sources=(public,), values=values)


def _indexer(config: ModelConfig, plain: GgufTensor, row: LayerTensor) -> GgufTensor:
    """An indexer tensor with the values of a head where llama.cpp has them (`index_head` says why)."""
    head = index_head(config)
    if head.as_stored or row.role is Role.INDEX_WEIGHTS:
        return plain
    order, more, public = list(head.order), head.width - len(head.order), plain.sources[0]

    def queries(source: Source) -> Iterator[Tensor]:
        w = source.whole(public)
        rows = w.view(row.heads, len(order), w.shape[-1])[:, order]
        yield F.pad(rows, (0, 0, 0, more)).reshape(-1, w.shape[-1])

    def keys(source: Source) -> Iterator[Tensor]:
        yield source.whole(public)[order].repeat(head.width // len(order), 1)

    def after_norm(source: Source) -> Iterator[Tensor]:
        yield F.pad(source.whole(public)[order], (0, more))[None]

    if row.name == f"{INDEXER}wq_b.weight":
        return replace(plain, shape=(row.heads * head.width, row.shape[1]), values=queries)
    if row.name == f"{INDEXER}wk.weight":
        return replace(plain, shape=(head.width, row.shape[1]), values=keys)
    return replace(plain, shape=(head.width,), values=after_norm)


def _experts(config: ModelConfig, layer: int, stored: Collection[str]) -> Iterator[GgufTensor]:
    """The routed experts of a layer, all experts of one matrix after another, from either public form."""
    count, hidden, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
    gate_up, down = (spec.public for spec in expert_tensors(config, layer, "stacked"))
    is_stacked = gate_up in stored
    for matrix, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
        if is_stacked:
            public, stride = (down, hidden) if matrix == "down" else (gate_up, 2 * inner)
            start = inner if matrix == "up" else 0
            parts = [(public, expert * stride + start) for expert in range(count)]
        else:
            parts = [(f"{_LAYER}{layer}.mlp.experts.{expert}.{matrix}_proj.weight", 0) for expert in range(count)]
        yield GgufTensor(
            name=f"blk.{layer}.ffn_{matrix}_exps.weight",
            shape=(count, rows, columns),
            sources=tuple(dict.fromkeys(public for public, _ in parts)),
            values=_in_turn(parts, rows),
        )


def _in_turn(parts: list[tuple[str, int]], count: int) -> Callable[[Source], Iterator[Tensor]]:
    def values(source: Source) -> Iterator[Tensor]:
        for public, first in parts:
            yield from source.rows(public, first, count)

    return values


def all_sources(tensors: list[GgufTensor]) -> set[str]:
    """Public names of everything the file is made of."""
    return {public for tensor in tensors for public in tensor.sources}
