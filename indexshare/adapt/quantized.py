"""Weights of 8 or 4 bits per group in place of a loaded model's matrices, for decoding where memory is the limit.

Embedding, norms, router, the indexer's head weights and the draft layer stay as they are. The native decode step reads
the packed weights; every other pass multiplies with the same weights, dequantised matrix by matrix.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indexshare import ops
from indexshare.config.layers import LayerTensor, Role
from indexshare.config.packed import BITS, packable, packed_bits, packed_stacks
from indexshare.model.glm import GlmMoeDsa
from indexshare.ops.packed.packing import PackedWeight, empty, pack_into

Index = tuple[int | slice, ...]


class _Packed(nn.Module, ABC):
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

    @abstractmethod
    def take(self, name: str, index: Index, values: Tensor) -> None:
        """Pack the plain module's weight `name`, or its part `index`."""


class QuantLinear(_Packed):
    """`nn.Linear` with packed weights; a matrix whose rows are those of heads is a stack with a member for each."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, row: LayerTensor, bits: int, dtype: torch.dtype) -> None:
        self.heads = row.heads
        (stack,) = packed_stacks(row)
        super().__init__(dtype, rows=empty(*stack, bits))
        self.register_parameter("bias", linear.bias)

    @property
    def weight(self) -> Tensor:
        """The dequantised matrix `[R, C]`, made anew at every reading."""
        return self.plain("rows").flatten(0, 1)

    def take(self, name: str, index: Index, values: Tensor) -> None:
        """Pack the matrix `[R, C]`."""
        pack_into(self.stack("rows"), 0, values.unflatten(0, (self.heads, -1)))

    def forward(self, x: Tensor) -> Tensor:
        """Shapes `[..., C]` -> `[..., R]`."""
        return F.linear(x, self.weight, self.bias)


class QuantUp(_Packed):
    """The up-projection of latents with packed weights: per head the values' rows `[V, C]`, and the keys', `[C, E]`.

    Absorbed queries sum over the rows of the keys' part, and groups must lie along what is summed.
    """

    def __init__(self, row: LayerTensor, bits: int, dtype: torch.dtype) -> None:
        self.nope = row.split[0]
        keys, values = packed_stacks(row)
        super().__init__(dtype, keys=empty(*keys, bits), values=empty(*values, bits))

    @property
    def weight(self) -> Tensor:
        """The dequantised matrix `[A * (E + V), C]`, made anew at every reading."""
        return torch.cat((self.plain("keys").transpose(1, 2), self.plain("values")), dim=1).flatten(0, 1)

    def take(self, name: str, index: Index, values: Tensor) -> None:
        """Pack the matrix `[A * (E + V), C]`."""
        keys, own = self.stack("keys"), self.stack("values")
        by_head = values.unflatten(0, (len(keys.values), -1))
        pack_into(keys, 0, by_head[:, : self.nope].transpose(1, 2))
        pack_into(own, 0, by_head[:, self.nope :])

    def forward(self, x: Tensor) -> Tensor:
        """Shapes `[..., C]` -> `[..., A * (E + V)]`."""
        return F.linear(x, self.weight)


class QuantExperts(_Packed):
    """`Experts` with packed weights, gate and up apart."""

    def __init__(self, gate_up: LayerTensor, down: LayerTensor, bits: int, dtype: torch.dtype) -> None:
        gate, up, out = (empty(*stack, bits) for row in (gate_up, down) for stack in packed_stacks(row))
        super().__init__(dtype, gate=gate, up=up, down=out)

    @property
    def gate_up_proj(self) -> Tensor:
        """The dequantised stack `[X, 2I, hidden]`, made anew at every reading."""
        return torch.cat((self.plain("gate"), self.plain("up")), dim=1)

    @property
    def down_proj(self) -> Tensor:
        """The dequantised stack `[X, hidden, I]`, made anew at every reading."""
        return self.plain("down")

    def take(self, name: str, index: Index, values: Tensor) -> None:
        """Pack `gate_up_proj` or `down_proj`: the whole stack, one expert, or gate or up of one."""
        expert = index[0] if index else 0
        assert isinstance(expert, int)
        stack = values[None] if index else values
        if name == "down_proj":
            pack_into(self.stack("down"), expert, stack)
            return
        rows = self.stack("gate").rows
        first = index[1].start if len(index) > 1 and isinstance(index[1], slice) else 0
        for at, part in enumerate(stack.split(rows, dim=1), first // rows):
            pack_into(self.stack(("gate", "up")[at]), expert, part)

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of the chosen experts, `[N, hidden]`."""
        return ops.experts(x, ids, weights, self.gate_up_proj, self.down_proj)


class Packing:
    """Packed modules in place of the matrices of a model's trunk; they take the weights one after the other.

    `packing(weights)` makes one for `load_model(adapt=...)`, which then never holds more than one matrix unpacked.

    Args:
        model: on the CPU, or without memory yet (device meta).
        weights: `"int8"` or `"int4"`; see `config/packed.py`.
        dtype: type of everything else in the model, float32 or bfloat16.
        device: where that will be.

    Raises:
        ValueError: another name, or a model elsewhere or quantised already.
    """

    def __init__(self, model: GlmMoeDsa, weights: str, dtype: torch.dtype, device: torch.device) -> None:
        check_weights(weights, device.type)
        if is_quantized(model):
            raise ValueError("the model's weights are quantised already; load it again")
        self.model, self.bits, self.dtype = model, BITS[weights], dtype
        self.owners = {owner: list(rows) for owner, rows in groupby(packable(model.config), _owner)}

    def replace(self, owner: str) -> nn.Module:
        """Put the packed module in place of `owner`, which is returned."""
        rows, old = self.owners[owner], self.model.get_submodule(owner)
        self.model.set_submodule(owner, self._packed(rows, old))
        self.model.weights_changed()
        return old

    def take(self, name: str, index: Index, values: Tensor) -> None:
        """Pack a weight of the model, `values` in the model's type, or the part of it that `index` says.

        Raises:
            ValueError: NaN or an infinity.
        """
        owner, _, attribute = name.rpartition(".")
        module = self.model.get_submodule(owner)
        assert isinstance(module, _Packed), name
        try:
            module.take(attribute, index, values)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def _packed(self, rows: list[LayerTensor], old: nn.Module) -> _Packed:
        if rows[0].role is Role.EXPERTS:
            gate_up, down = rows
            return QuantExperts(gate_up, down, self.bits, self.dtype)
        (row,) = rows
        if row.role is Role.LATENT_UP:
            return QuantUp(row, self.bits, self.dtype)
        if not isinstance(old, nn.Linear):
            raise ValueError(f"{row.name} is of {type(old).__name__}, which cannot be packed; load without `weights`")
        return QuantLinear(old, row, packed_bits(row, self.bits), self.dtype)


def _owner(row: LayerTensor) -> str:
    return row.name.rpartition(".")[0]


def packing(weights: str | None) -> Callable[[GlmMoeDsa, torch.dtype, torch.device], Packing] | None:
    """What `load_model` takes as `adapt` to load packed weights; None, for None, loads them as they are.

    Raises:
        ValueError: a name that is not `"int8"` or `"int4"`.
    """
    if weights is None:
        return None
    check_weights(weights, "cpu")

    def adapt(model: GlmMoeDsa, dtype: torch.dtype, device: torch.device) -> Packing:
        packed = Packing(model, weights, dtype, device)
        for owner in packed.owners:
            packed.replace(owner)
        return packed

    return adapt


def quantize_weights(model: GlmMoeDsa, weights: str) -> GlmMoeDsa:
    """Replace the trunk's matrices by packed ones, one after the other, in place.

    Args:
        model: on the CPU, in float32 or bfloat16; for inference only afterwards.
        weights: as in `Packing`.

    Raises:
        ValueError: as in `Packing`, or weights that are not finite.
    """
    embedding = model.embed_tokens.weight
    packed = Packing(model, weights, embedding.dtype, embedding.device)
    for owner, rows in packed.owners.items():
        old = packed.replace(owner)
        for row in rows:
            packed.take(row.name, (), getattr(old, row.name.rpartition(".")[2]).detach())
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
