"""Random small models of the dense families in transformers, and the same models loaded by this package."""

from __future__ import annotations

import functools
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from indexshare import GlmMoeDsa
from tests.parity.harness import Batch, load_twin, transformers

FAMILIES = {
    "llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "smollm3": "SmolLM3",
}  # fmt: skip
SCALINGS: tuple[dict[str, Any], ...] = (
    {},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.3},
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 24,
    },
)  # fmt: skip


@dataclass(frozen=True)
class DenseTwins:
    """A public model and ours with the same weights."""

    public: Any
    ours: GlmMoeDsa


def random_sizes(family: str, number: int) -> dict[str, Any]:
    """Small, odd sizes; every family meets every scaling of positions."""
    rng = random.Random(f"{family} {number}")
    groups, each = rng.choice([1, 2, 3]), rng.choice([1, 2, 3, 4])
    width, hidden = rng.choice([4, 8, 16]), rng.choice([24, 40, 48])
    if family in ("qwen2", "smollm3"):  # a head is the hidden size divided by the heads
        hidden = width * groups * each
    elif family == "llama":
        hidden = 4 * groups * each
    sizes: dict[str, Any] = {
        "vocab_size": rng.choice([61, 97, 128]), "hidden_size": hidden, "num_hidden_layers": rng.randint(2, 5),
        "num_attention_heads": groups * each, "num_key_value_heads": groups, "head_dim": width,
        "intermediate_size": rng.choice([40, 56]), "max_position_embeddings": 128,
        "rms_norm_eps": rng.choice([1e-5, 1e-6]), "tie_word_embeddings": rng.random() < 0.5,
        "initializer_range": hidden**-0.5, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": rng.choice([1e4, 5e5])} | SCALINGS[number % 6],
    }  # fmt: skip
    if family in ("llama", "qwen3", "smollm3"):
        sizes["attention_bias"] = rng.random() < 0.5
    if family == "mistral":
        sizes["sliding_window"] = rng.choice([None, 128])  # one as long as the context leaves nothing out
    if family == "smollm3":
        sizes["no_rope_layer_interval"] = rng.choice([2, 3])
    return sizes


@functools.lru_cache(maxsize=64)
def dense_twins(family: str, number: int) -> DenseTwins:
    """Configuration `number` of a family, built once per test run, every weight random."""
    sizes, name = random_sizes(family, number), FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**sizes)
    config._attn_implementation = ("eager", "sdpa")[number % 2]
    torch.manual_seed(number)
    public = getattr(transformers, f"{name}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for parameter_name, tensor in public.named_parameters():
            if parameter_name.endswith("norm.weight"):
                tensor.normal_(1.0, 0.3)
            elif parameter_name.endswith("bias"):
                tensor.normal_(0.0, 0.4)
    with tempfile.TemporaryDirectory() as folder:
        return DenseTwins(public, load_twin(public, Path(folder)))


def random_batch(vocabulary: int, number: int, side: str) -> Batch:
    """Three sequences of different lengths with padding on one side."""
    generator = torch.Generator().manual_seed(number)
    lengths = [29, 40, 61]
    ids = torch.randint(2, vocabulary, (3, 61), generator=generator)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        mask[row, : length if side == "right" else None] = 1
        if side == "left":
            mask[row, : 61 - length] = 0
    return Batch(ids, mask, lengths)
