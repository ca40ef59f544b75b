"""Weights of 8 or 4 bits per group in place of a loaded model's matrices, for decoding where memory is the limit.

Embedding, norms, router, the indexer's head weights and the draft layer stay as they are. The native decode step reads
the packed weights; every other pass multiplies with the same weights, dequantised matrix by matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indexshare import ops
from indexshare.model.attention.base import Attention
from indexshare.model.attention.mla import MLA
from indexshare.model.experts import Experts, MoE, SwiGLU
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.layer import DecoderLayer
from indexshare.ops.packed.packing import PackedWeight, pack

BITS = {"int8": 8, "int4": 4}


class _Packed(nn.Module):
    """Holds packed stacks by name, as buffers that keep their types whatever the model is converted to."""

    def __init__(self, dtype: torch.dtype, **stacks: PackedWeight) -> None:
        super().__init__()
        self._sizes = {name: (packed.bits, packed.rows, packed.inputs) for name, packed in stacks.items()}
        for name, packed in stacks.items():
            self.register_buffer(f"{name}_values", packed.values)
            self.register_buffer(f"{name}_scales", packed.scales)
        self.register_buffer("_type", torch.empty(0, dtype=dtype))  # follows `.to(dtype)`

    def stack(self, name: str) -> PackedWeight:
        """One of the stacks."""
        return PackedWeight(getattr(self, f"{name}_values"), getattr(self, f"{name}_scales"), *self._sizes[name])

    def plain(self, name: str) -> Tensor:
        """Its weights `[S, R, C]` in the model's type."""
        kind: Tensor = self.get_buffer("_type")
        return self.stack(name).dequantize(kind.dtype)


class QuantLinear(_Packed):
    """`nn.Linear` with packed weights; `members` > 1 for a matrix whose rows are those of so many heads."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, bits: int, members: int = 1) -> None:
        weight = linear.weight.detach()
        super().__init__(weight.dtype, rows=pack(weight.unflatten(0, (members, -1)), bits))
        self.register_parameter("bias", linear.bias)

    @property
    def weight(self) -> Tensor:
        """The dequantised matrix `[R, C]`, made anew at every reading."""
        return self.plain("rows").flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes `[..., C]` -> `[..., R]`."""
        return F.linear(x, self.weight, self.bias)


class QuantUp(_Packed):
    """`kv_b_proj` with packed weights: per head the values' rows `[V, C]`, and the keys' transposed, `[C, E]`.

    Absorbed queries sum over the rows of the keys' part, and groups must lie along what is summed.
    """

    def __init__(self, linear: nn.Linear, bits: int, heads: int, nope: int) -> None:
        weight = linear.weight.detach().unflatten(0, (heads, -1))
        keys, values = pack(weight[:, :nope].transpose(1, 2), bits), pack(weight[:, nope:], bits)
        super().__init__(linear.weight.dtype, keys=keys, values=values)

    @property
    def weight(self) -> Tensor:
        """The dequantised matrix `[A * (E + V), C]`, made anew at every reading."""
        return torch.cat((self.plain("keys").transpose(1, 2), self.plain("values")), dim=1).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes `[..., C]` -> `[..., A * (E + V)]`."""
        return F.linear(x, self.weight)


class QuantExperts(_Packed):
    """`Experts` with packed weights, gate and up apart."""

    def __init__(self, experts: Experts, bits: int) -> None:
        gate, up = experts.gate_up_proj.detach().chunk(2, dim=1)
        down = experts.down_proj.detach()
        super().__init__(gate.dtype, gate=pack(gate, bits), up=pack(up, bits), down=pack(down, bits))

    @property
    def gate_up_proj(self) -> Tensor:
        """The dequantised stack `[X, 2I, hidden]`, made anew at every reading."""
        return torch.cat((self.plain("gate"), self.plain("up")), dim=1)

    @property
    def down_proj(self) -> Tensor:
        """The dequantised stack `[X, hidden, I]`, made anew at every reading."""
        return self.plain("down")

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of the chosen experts, `[N, hidden]`."""
        return ops.experts(x, ids, weights, self.gate_up_proj, self.down_proj)


def quantize_weights(model: GlmMoeDsa, weights: str) -> GlmMoeDsa:
    """Replace the trunk's matrices by packed ones, one layer after the other, in place.

    With `"int4"` the indexer and the head keep 8 bits: they are small, and errors there choose other tokens.

    Args:
        model: on the CPU, in float32 or bfloat16; for inference only afterwards.
        weights: `"int8"` or `"int4"`.

    Raises:
        ValueError: another name, a model elsewhere or quantised already, or weights that are not finite.
    """
    check_weights(weights, model.embed_tokens.weight.device.type)
    if is_quantized(model):
        raise ValueError("the model's weights are quantised already; load it again")
    bits = BITS[weights]
    for layer in model.layers:
        assert isinstance(layer, DecoderLayer)
        _quantize_attention(layer.self_attn, bits)
        if isinstance(layer.mlp, MoE):
            layer.mlp.experts = QuantExperts(layer.mlp.experts, bits)  # type: ignore[assignment]
        _quantize_swiglu(layer.mlp.shared_experts if isinstance(layer.mlp, MoE) else layer.mlp, bits)
    if not model.config.tie_word_embeddings:
        model.lm_head = QuantLinear(model.lm_head, 8)  # type: ignore[assignment]
    return model


def check_weights(weights: str | None, device: str) -> None:
    """Refuse (ValueError) names that `quantize_weights` does not know, and other devices than the CPU; None is fine."""
    if weights is None:
        return
    if weights not in BITS:
        raise ValueError(f"weights is {weights!r}; expected one of {', '.join(sorted(BITS, reverse=True))}")
    if device != "cpu":
        raise ValueError(f"weights={weights!r} runs on the CPU only, the model is on {device}")


def is_quantized(model: GlmMoeDsa) -> bool:
    """Whether `quantize_weights` has been at work."""
    return any(isinstance(module, _Packed) for module in model.layers[0].modules())


def _quantize_attention(mla: Attention, bits: int) -> None:
    if not isinstance(mla, MLA):
        raise ValueError(f"weights of {type(mla).__name__} cannot be packed; load the model without `weights`")
    mla.q_b_proj = QuantLinear(mla.q_b_proj, bits, mla.num_heads)  # type: ignore[assignment]
    mla.kv_b_proj = QuantUp(mla.kv_b_proj, bits, mla.num_heads, mla.nope_dim)  # type: ignore[assignment]
    _replace(mla, ("q_a_proj", "kv_a_proj_with_mqa", "o_proj"), lambda linear: QuantLinear(linear, bits))
    if mla.indexer is not None:
        heads = mla.indexer.num_heads
        mla.indexer.wq_b = QuantLinear(mla.indexer.wq_b, 8, heads)  # type: ignore[assignment]
        mla.indexer.wk = QuantLinear(mla.indexer.wk, 8)  # type: ignore[assignment]


def _quantize_swiglu(mlp: SwiGLU | None, bits: int) -> None:
    if mlp is not None:
        _replace(mlp, ("gate_proj", "up_proj", "down_proj"), lambda linear: QuantLinear(linear, bits))


def _replace(module: nn.Module, names: tuple[str, ...], make: Callable[[nn.Linear], nn.Module]) -> None:
    for name in names:
        setattr(module, name, make(getattr(module, name)))
