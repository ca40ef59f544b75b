"""The C++ side's view of a model and a batch (`model.hpp`), field by field, and how tensors become part of it.

The structures borrow: whoever fills one keeps the tensors alive for as long as it is in use.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from indexshare.ops import binding
from indexshare.ops.packed.matrix import PLAIN, Matrix

_POINTER, _INTEGER, _NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class FeedForward(ctypes.Structure):
    """`down(silu(gate x) * (up x))`; all zero for none."""

    _fields_ = tuple((name, Matrix) for name in ("gate", "up", "down"))


class IndexerWeights(ctypes.Structure):
    """The indexer of a Full layer."""

    _fields_ = (
        *((name, Matrix) for name in ("key", "query", "head_weights")),
        *((name, _POINTER) for name in ("norm_weight", "norm_bias")),
    )


class LayerWeights(ctypes.Structure):
    """One decoder layer; `dense` is its feed-forward network, or the shared experts beside `experts`."""

    _fields_ = (
        *((name, _POINTER) for name in ("input_norm", "query_norm", "latent_norm", "post_norm")),
        *((name, Matrix) for name in ("query_down", "query_up", "latent_down", "output", "key_up", "value_up")),
        ("full", _INTEGER), ("indexer", IndexerWeights), ("sparse", _INTEGER), ("router", Matrix),
        ("router_bias", _POINTER), ("experts", FeedForward), ("dense", FeedForward),
    )  # fmt: skip


class ModelWeights(ctypes.Structure):
    """The trunk and its head, with all sizes; or the draft layer in the trunk's place, with what makes its input."""

    _fields_ = (
        *((name, _POINTER) for name in ("embedding", "final_norm", "embedding_norm", "state_norm")),
        ("mix", Matrix), ("head", Matrix), ("layers", ctypes.POINTER(LayerWeights)), ("frequencies", _POINTER),
        *((name, _INTEGER) for name in (
            "num_layers", "vocabulary", "hidden", "heads", "rank", "rope", "nope", "value", "query_rank",
            "index_heads", "index_width", "topk", "interleave", "experts", "experts_per_token", "groups",
            "chosen_groups", "normalise", "quantized",
        )),
        *((name, _NUMBER) for name in (
            "norm_eps", "latent_eps", "key_eps", "rope_scale", "attention_scale", "index_scale", "routed_scale",
        )),
    )  # fmt: skip


class Batch(ctypes.Structure):
    """The new tokens of one step."""

    _fields_ = (
        *((name, _POINTER) for name in ("ids", "positions", "slots", "tables", "latents", "index_keys")),
        *((name, _INTEGER) for name in ("rows", "block_size", "limit")),
        ("hidden", _POINTER), ("wanted", _POINTER), ("num_wanted", _INTEGER), ("logits", _POINTER),
        ("threads", _INTEGER), ("states", _POINTER), ("ahead", _INTEGER), ("reuse", _POINTER),
        *((name, _INTEGER) for name in ("latent_kind", "latent_precise", "key_kind", "key_precise")),
        *((name, _POINTER) for name in ("latent_strides", "latent_slots", "latent_tables", "fetch")),
        ("fetch_each", _INTEGER),
    )  # fmt: skip


@cache
def layout_refusal(library: ctypes.CDLL) -> str | None:
    """Where these structures differ from the library's, or None."""
    structures = (FeedForward, IndexerWeights, LayerWeights, ModelWeights, Batch)
    return binding.layout_refusal(library, "indexshare_step_layout", structures)


def plain(weight: Tensor, bias: Tensor | None = None) -> Matrix:
    """A matrix `[rows, inputs]`, or a stack `[S, rows, inputs]` of them, of the model's type.

    Raises:
        ValueError: the rows of a matrix do not lie one after the other.
    """
    rows, inputs = weight.shape[-2:]
    if weight.stride(-1) != 1 or weight.stride(-2) != inputs:
        raise ValueError(f"a weight of shape {list(weight.shape)} has strides {weight.stride()}; make it contiguous")
    stride = weight.stride(0) * weight.element_size() if weight.ndim == 3 else 0
    matrix = Matrix(values=weight.data_ptr(), kind=PLAIN, rows=rows, inputs=inputs, stride=stride)
    if bias is not None:
        matrix.bias = bias.data_ptr()
    return matrix


def pointers(tensors: Sequence[Tensor | None]) -> Any:
    """A C array of addresses, null for None."""
    return (_POINTER * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


def integers(values: Sequence[int]) -> Any:
    """A C array of int64."""
    return (_INTEGER * len(values))(*values)


def supported_dtype(dtype: torch.dtype) -> bool:
    """Whether the step computes in this type."""
    return dtype in (torch.float32, torch.bfloat16)
