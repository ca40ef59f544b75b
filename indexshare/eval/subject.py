"""What is evaluated: a loaded model, and the text that it is scored on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from indexshare.adapt.quantized import check_weights, packing
from indexshare.adapt.rounded_rows import round_rows
from indexshare.cache.codecs import codec_name, codecs_by_stream
from indexshare.checkpoint.load import load_model
from indexshare.config.share_plan import SharePlan
from indexshare.config.shipped import model_directory
from indexshare.data.corpus import read_folder
from indexshare.data.long_tasks import Form
from indexshare.data.splitting import Document
from indexshare.engine.loading import running_dtype
from indexshare.eval.asking import ModelAsker
from indexshare.eval.held_out import held_out_split, other_text, package_split, training_text
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.chat_template import ChatTemplate
from indexshare.text.files import SkippedFile
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
        left_out: files that could not be taken as text, and why.
        dtype, device: how the model was loaded, for a second one to compare with.
        template: the model's chat template, if it has one.
        caches: codecs whose rounding is measured, of everything that a cache keeps and of index keys.
    """

    name: str
    model: GlmMoeDsa
    tokenizer: Tokenizer
    held_out: Sequence[Document] = ()
    everything: Sequence[Document] = ()
    left_out: Sequence[SkippedFile] = ()
    dtype: str | torch.dtype | None = None
    device: str = "cpu"
    template: ChatTemplate | None = None
    caches: tuple[str | None, str | None] = (None, None)

    @property
    def context(self) -> int:
        """Tokens that the model was made for."""
        return self.model.config.max_position_embeddings

    def asker(self, form: Form) -> ModelAsker:
        """The model as one that answers questions; ValueError for chat form without a template."""
        return ModelAsker(self.name, self.model, self.tokenizer, form=form, template=self.template, caches=self.caches)


def split_sharing(name: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    """`DIRECTORY@FFFSSS...` as the model and the changes to its configuration; a plain name as it is, with none.

    Raises:
        ValueError: the plan is none.
    """
    model, sign, pattern = name.rpartition("@")
    if not sign or Path(name).exists():
        return name, {}
    return model, {"indexer_types": SharePlan.from_pattern(pattern).types}


def load_subject(
    name: str,
    *,
    text: Path | None = None,
    patterns: Sequence[str] = (),
    packages: Sequence[str] = (),
    needs_text: bool = True,
    dtype: str | None = None,
    weights: str | None = None,
    device: str = "cpu",
    caches: tuple[str | None, str | None] = (None, None),
) -> Subject:
    """Read the text, then load the model: a wrong folder costs nothing.

    Args:
        name: a shipped model or a model directory; with `@FFFSSS...` behind it, under that plan of sharing, whose Full
            layers the checkpoint must have indexers for.
        text: a folder or file to score; by default the model's own held-out files.
        patterns: of the files of `text`; by default those of the model's training text.
        packages: installed packages to score in place of either.
        needs_text: read nothing but a given folder if False.
        dtype: as in `load_model`; float32 on a CPU unless given.
        weights: int8 or int4 for packed weights.
        device: where to run.
        caches: codecs whose rounding is to be measured, of everything that a cache keeps and of index keys.

    Raises:
        ValueError: an unknown model, no such text, or both `text` and `packages`.
    """
    if text is not None and packages:
        raise ValueError("--text and --packages both name what to score; give one of them")
    check_weights(weights, device)
    named = [codec_name(*pair) for pair in zip(("--cache-dtype", "--index-cache-dtype"), caches, strict=True)]
    plain, changes = split_sharing(name)
    directory, held_out, everything = model_directory(plain), list[Document](), list[Document]()
    left_out: tuple[SkippedFile, ...] = ()
    if patterns and text is None:
        raise ValueError("--pattern goes with --text; the model's own text is read as training read it")
    if text is not None:
        found = read_folder(other_text(directory, text, patterns))
        held_out, everything, left_out = found.documents, found.documents, found.left_out
    elif needs_text:
        split = package_split(directory, packages) if packages else held_out_split(training_text(directory))
        held_out, everything, left_out = split.held_out, [*split.train, *split.held_out], split.left_out
    kind = running_dtype(dtype, device)
    with warnings.catch_warnings():
        if changes:  # indexers that the plan does not need are left out, as was asked for
            warnings.filterwarnings("ignore", message=".*indexer tensors of Shared layers")
        model = load_model(directory, dtype=kind, device=device, config_overrides=changes, adapt=packing(weights))
    if any(named):
        round_rows(model, codecs_by_stream(model.config, *named))
    tokenizer = Tokenizer.load(directory)
    return Subject(
        name=name, model=model, tokenizer=tokenizer, held_out=held_out, everything=everything, left_out=left_out,
        dtype=kind, device=device, template=ChatTemplate.load(directory), caches=caches,
    )  # fmt: skip
