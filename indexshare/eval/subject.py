"""What is evaluated: a loaded model, and the text that it is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from indexshare.adapt.quantized import check_weights, packing
from indexshare.checkpoint.load import load_model
from indexshare.config.shipped import model_directory
from indexshare.data.corpus import TextFolder, read_folder
from indexshare.data.splitting import Document
from indexshare.engine.loading import running_dtype
from indexshare.eval.held_out import held_out_split, package_split, training_text
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A loaded model and its text.

    Attributes:
        name: the model as the user called it.
        model: in evaluation mode.
        tokenizer: the model's.
        held_out: files that the model was not trained on.
        everything: all files of the text, trained on or not.
        dtype, device: how the model was loaded, for a second one to compare with.
    """

    name: str
    model: GlmMoeDsa
    tokenizer: Tokenizer
    held_out: Sequence[Document] = ()
    everything: Sequence[Document] = ()
    dtype: str | torch.dtype | None = None
    device: str = "cpu"


def load_subject(
    name: str,
    *,
    text: Path | None = None,
    packages: Sequence[str] = (),
    needs_text: bool = True,
    dtype: str | None = None,
    weights: str | None = None,
    device: str = "cpu",
) -> Subject:
    """Read the text, then load the model: a wrong folder costs nothing.

    Args:
        name: a shipped model or a model directory.
        text: a folder to score; by default the model's own held-out files.
        packages: installed packages to score in place of either.
        needs_text: read nothing but a given folder if False.
        dtype: as in `load_model`; float32 on a CPU unless given.
        weights: int8 or int4 for packed weights.
        device: where to run.

    Raises:
        ValueError: an unknown model, no such text, or both `text` and `packages`.
    """
    if text is not None and packages:
        raise ValueError("--text and --packages both name what to score; give one of them")
    check_weights(weights, device)
    directory, held_out, everything = model_directory(name), list[Document](), list[Document]()
    if text is not None:
        held_out = everything = read_folder(TextFolder(path=str(text))).documents
    elif needs_text:
        split = package_split(directory, packages) if packages else held_out_split(training_text(directory))
        held_out, everything = split.held_out, [*split.train, *split.held_out]
    kind = running_dtype(dtype, device)
    model = load_model(name, dtype=kind, device=device, adapt=packing(weights))
    tokenizer = Tokenizer.load(directory)
    return Subject(
        name=name, model=model, tokenizer=tokenizer, held_out=held_out, everything=everything, dtype=kind,
        device=device,
    )  # fmt: skip
