"""A model with its tokenizer and its own defaults, ready to generate."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from indexshare.adapt.quantized import packing
from indexshare.checkpoint.device import require_memory, usable_device
from indexshare.checkpoint.load import load_model
from indexshare.config.generation import GENERATION_FILE, GENERATION_KEYS, GenerationDefaults
from indexshare.config.shipped import model_directory
from indexshare.model.glm import GlmMoeDsa
from indexshare.ops.native import native
from indexshare.text.tokenizer import Tokenizer


def running_dtype(dtype: torch.dtype | str | None, device: torch.device | str) -> torch.dtype | str | None:
    """The type to run in when none is asked for: float32 on a CPU, as stored (None) elsewhere.

    In bfloat16 the last bits of a product depend on how many rows it has, and greedy text on them (`docs/LOG.md`).
    """
    return torch.float32 if dtype is None and torch.device(device).type == "cpu" else dtype


def load_with_tokenizer(
    model: str | Path | GlmMoeDsa,
    tokenizer: Tokenizer | str | Path | None,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    weights: str | None,
) -> tuple[GlmMoeDsa, Tokenizer | None]:
    """The model in evaluation mode and its tokenizer."""
    if isinstance(model, str | Path):
        directory = model_directory(model)
        device = usable_device("cpu" if device is None else device)
        kind = running_dtype(dtype, device)
        loaded = load_model(directory, dtype=kind, device=device, adapt=packing(weights))
        if tokenizer is None and (directory / "tokenizer.json").is_file():
            tokenizer = directory
    elif not isinstance(model, torch.nn.Module):
        raise ValueError(f"model is {model!r}; expected a shipped model's name, a directory, or a model")
    else:
        loaded = model
        require_memory(model)
        if dtype is not None or device is not None:
            raise ValueError("dtype and device apply to a model that is loaded; convert this one with model.to(...)")
        if weights is not None:
            raise ValueError("weights applies to a model that is loaded; call quantize_weights on this one")
    if loaded.embed_tokens.weight.device.type == "cpu":
        native()  # kernels that have to be compiled first are compiled now, not in the middle of a prompt
    if isinstance(tokenizer, str | Path):
        tokenizer = Tokenizer.load(tokenizer)
    if tokenizer is not None and tokenizer.vocab_size > loaded.config.vocab_size:
        raise ValueError(
            f"the tokenizer has ids for {tokenizer.vocab_size} entries, more than the model's vocabulary of "
            f"{loaded.config.vocab_size}; it belongs to another model"
        )
    return loaded.eval(), tokenizer


def generation_defaults(model: GlmMoeDsa) -> GenerationDefaults:
    """What the generation file that came with the model says; a warning names what is not implemented."""
    content = getattr(model, "companions", {}).get(GENERATION_FILE)
    old = {key: value for key, value in model.config.extra.items() if key in GENERATION_KEYS}
    found = GenerationDefaults.from_dict(old) if content is None else GenerationDefaults.from_bytes(content)
    if found.not_implemented:
        warnings.warn(
            f"the model's {GENERATION_FILE} asks for {', '.join(found.not_implemented)}; not implemented, ignored",
            stacklevel=3,
        )
    return found
