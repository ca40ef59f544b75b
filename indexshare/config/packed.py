"""Which tensors are packed into weights of 8 or 4 bits, and as stacks of which matrices. Plain Python, no torch.

Embedding, norms, router, the indexer's head weights and the draft layer stay as they are. In 4 bits the indexer and
the head keep 8: they are small, and errors there choose other tokens. Packed matrices lie in blocks of 16 rows and
groups of 32 inputs, each row of a group with a 16-bit scale (`ops/packed/packing.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from indexshare.config.layers import LayerTensor, Role, model_tensors
from indexshare.config.model import ModelConfig

BITS = {"int8": 8, "int4": 4}
BLOCK_ROWS, GROUP = 16, 32
_SCALE_BYTES = 2


def is_packable(row: LayerTensor) -> bool:
    """Whether a tensor under its full name is packed: the matrices of the trunk, and the head."""
    return (row.is_product and not row.name.startswith("mtp.")) or row.role is Role.HEAD


def packable(config: ModelConfig) -> Iterator[LayerTensor]:
    """The tensors of a model that are packed; the head only if it is not the embedding."""
    return filter(is_packable, model_tensors(config))


def packed_bits(row: LayerTensor, bits: int) -> int:
    """Bits of a tensor's weights where the model's have `bits`."""
    return 8 if row.part in ("indexer", "head") else bits


def packed_stacks(row: LayerTensor) -> tuple[tuple[int, int, int], ...]:
    """The stacks that a tensor is packed as: matrices, rows and inputs of each.

    A matrix whose rows belong to heads has a member for each head. The up-projection of latents is two stacks, the
    keys' part transposed, for absorbed queries sum over its rows; so are gate and up of the experts.
    """
    inputs = row.shape[-1]
    if row.role is Role.EXPERTS:
        return tuple((row.shape[0], rows, inputs) for rows in row.split or (row.shape[1],))
    if row.role is Role.LATENT_UP:
        nope, value = row.split
        return (row.heads, inputs, nope), (row.heads, value, inputs)
    return ((row.heads, row.shape[0] // row.heads, inputs),)


def packed_bytes(row: LayerTensor, bits: int) -> int:
    """Bytes of a packed tensor, padding and scales included."""
    group = GROUP * packed_bits(row, bits) // 8 + _SCALE_BYTES
    return sum(
        count * -(-rows // BLOCK_ROWS) * BLOCK_ROWS * -(-inputs // GROUP) * group
        for count, rows, inputs in packed_stacks(row)
    )
