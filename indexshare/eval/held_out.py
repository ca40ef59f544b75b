"""How well a model predicts files it was not trained on: bits per byte, against `xz`, and by position.

Bits per byte is the code length of the text under the model, divided by the text's UTF-8 bytes; it does not depend
on the tokenizer. Files are scored one by one under their file line, whose own bytes do not count, exactly as `xz`
is given each file alone.
"""

from __future__ import annotations

import itertools
import json
import lzma
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from indexshare.cache.view import InFlightView
from indexshare.data.corpus import STANDARD_LIBRARY, TextFolder, anywhere
from indexshare.data.packages import PackageText, text_from_record, unseen_packages
from indexshare.data.splitting import Document, Split
from indexshare.eval.bootstrap import Interval, ratio
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer, file_header
from indexshare.train.evaluate import bits_by_file
from indexshare.train.losses import token_losses

DEFAULT_STRETCH = 8192  # tokens of a file in one piece
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class HeldOutReport:
    """Held-out figures of one model, all in bits per byte except `position_bits`.

    `sparse` and `full` are the model with its selection and with full attention; `xz` is `xz -9e` file by file.
    `position_bits` are bits per token over long windows, averaged over the ranges that `position_edges` bound.
    Intervals are (low, high) at 95 %, from resampling the files, None for a single file; comparisons are paired.
    `by_file` has name, bytes, and bits with the selection of each file.
    """

    files: int
    num_bytes: int
    max_tokens: int
    sparse: float
    full: float
    xz: float
    position_edges: tuple[int, ...]
    position_bits: tuple[float, ...]
    windows: int
    sparse_interval: Interval | None
    full_interval: Interval | None
    below_xz_interval: Interval | None
    price_interval: Interval | None
    by_file: tuple[tuple[str, int, float], ...] = ()

    @property
    def below_xz(self) -> float:
        """Part by which the model beats `xz`: 0.2 is 20 % fewer bits."""
        return 1 - self.sparse / self.xz

    @property
    def price_of_sparsity(self) -> float:
        """Part by which the selection costs bits against full attention; negative when it saves some."""
        return self.sparse / self.full - 1


def xz_bits(text: str) -> int:
    """Size in bits of one file under `xz -9e`."""
    return 8 * len(lzma.compress(text.encode("utf-8"), preset=9 | lzma.PRESET_EXTREME))


def training_text(directory: Path) -> dict[str, Any]:
    """What a model was trained on: the fields of its text, from `training.json` in its directory.

    Raises:
        ValueError: no such file, or it does not say.
    """
    file = directory / "training.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["text"])
    except (FileNotFoundError, LookupError, ValueError, TypeError):
        raise ValueError(f"{file} does not say what the model was trained on; give a folder with --text") from None


def other_text(directory: Path, path: Path, patterns: Sequence[str] = ()) -> TextFolder:
    """A folder (or file) to score in place of a model's own text.

    Args:
        directory: of the model.
        path: the folder.
        patterns: of its files (`anywhere`); unless given, those of the text that the model was trained on.

    Raises:
        ValueError: a pattern is none.
    """
    try:
        record = text_from_record(training_text(directory))
        own = record.base if isinstance(record, PackageText) else record
    except ValueError:  # nothing is known of what it was trained on
        own = TextFolder(path=str(path))
    # What is left out by name has reasons of its own in the standard library, and a path is one of another folder
    exclude = TextFolder.exclude if own.path == STANDARD_LIBRARY else own.exclude
    return TextFolder(
        path=str(path),
        pattern=tuple(map(anywhere, patterns)) or own.pattern,
        exclude=tuple(name for name in exclude if "/" not in name),
        max_bytes=own.max_bytes,
    )


def held_out_documents(text: dict[str, Any]) -> list[Document]:
    """The held-out side of a training text, split again by the rule that training used.

    Args:
        text: of the training run, as in `training.json`.

    Raises:
        ValueError: the text is not here, or nothing of it is held out.
    """
    return held_out_split(text).held_out


def held_out_split(text: dict[str, Any]) -> Split:
    """Both sides of a training text; arguments and errors as for `held_out_documents`."""
    split = text_from_record(text).split()
    if not split.held_out:
        raise ValueError("no file of the training text is held out; score another folder with --text")
    return split


def package_split(directory: Path, names: Sequence[str]) -> Split:
    """Installed packages as held-out text; ValueError for those that the model in `directory` was trained on."""
    try:
        record = training_text(directory)
    except ValueError:
        record = None  # nothing is known of what it has seen
    return Split(train=[], held_out=unseen_packages(names, record), copies=0, near_copies=0)


def some_documents(documents: Sequence[Document], count: int | None, seed: int) -> Sequence[Document]:
    """At most `count` of the documents, drawn by the seed, in their order; all of them for None."""
    if count is None or count >= len(documents):
        return documents
    return [documents[i] for i in sorted(random.Random(seed).sample(range(len(documents)), count))]


def stretch(model: GlmMoeDsa, wanted: int | None) -> int:
    """Tokens of the longest stretch of a file that is scored: as wanted, or by default within the model's context."""
    return min(DEFAULT_STRETCH, model.config.max_position_embeddings) if wanted is None else wanted


def check_stretches(model: GlmMoeDsa, tokenizer: Tokenizer, documents: Sequence[Document], max_tokens: int) -> None:
    """Refuse (ValueError) stretches that the model does not read, or that a file's own line would fill."""
    context = model.config.max_position_embeddings
    if not 2 <= max_tokens <= context:
        raise ValueError(f"max_tokens is {max_tokens}; the model's context is {context}")
    lines = [file_header(document.name) for document in documents]
    sizes = [len(ids) for ids in tokenizer.encode_batch(lines, parse_special=False)]
    if max(sizes, default=0) >= max_tokens:
        most, name = max(sizes), documents[sizes.index(max(sizes))].name
        raise ValueError(
            f"max_tokens is {max_tokens}, the file line of {name!r} alone takes {most} tokens; give a longer context"
        )


def evaluate_held_out(
    model: GlmMoeDsa,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    max_tokens: int = DEFAULT_STRETCH,
    progress: Progress | None = None,
) -> HeldOutReport:
    """Score documents with the model's selection and with full attention, and windows by position.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        documents: text the model was not trained on.
        max_tokens: longest context; longer files are scored in stretches of it.
        progress: told (documents done, documents in all).

    Raises:
        ValueError: no documents, or a context that the model does not have.
    """
    if not documents:
        raise ValueError("no documents to score")
    check_stretches(model, tokenizer, documents, max_tokens)
    sizes, sparse, full, xz = list[int](), list[float](), list[float](), list[int]()
    for done, document in enumerate(documents):
        if progress is not None:
            progress(done, len(documents))
        ((num_bytes, bits),) = bits_by_file(model, tokenizer, [document], max_tokens=max_tokens)
        ((_, dense),) = bits_by_file(model, tokenizer, [document], max_tokens=max_tokens, full_attention=True)
        sizes.append(num_bytes)
        sparse.append(bits)
        full.append(dense)
        xz.append(xz_bits(document.text))
    edges, by_position, windows = bits_by_position(model, tokenizer, documents, max_tokens=max_tokens)
    return HeldOutReport(
        files=len(documents),
        num_bytes=sum(sizes),
        max_tokens=max_tokens,
        sparse=sum(sparse) / sum(sizes),
        full=sum(full) / sum(sizes),
        xz=sum(xz) / sum(sizes),
        position_edges=edges,
        position_bits=by_position,
        windows=windows,
        sparse_interval=ratio(sparse, sizes).interval,
        full_interval=ratio(full, sizes).interval,
        below_xz_interval=ratio(sparse, xz).changed(-1, 1).interval,
        price_interval=ratio(sparse, full).changed(1, -1).interval,
        by_file=tuple(zip((document.name for document in documents), sizes, sparse, strict=True)),
    )


@torch.no_grad()
def bits_by_position(
    model: GlmMoeDsa, tokenizer: Tokenizer, documents: Sequence[Document], *, max_tokens: int
) -> tuple[tuple[int, ...], tuple[float, ...], int]:
    """Bits per token by position in windows of `max_tokens` over the documents one after another.

    Windows start every quarter of their length, so the two last ranges are averages over the same tokens (but for
    those near either end of the text), and their difference is that of the context alone.

    Returns:
        Edges (0, 256, 512, ... doubling up to `max_tokens`), mean bits between each pair of edges, and the number of
        windows; both tuples are empty when the documents do not fill one window.
    """
    end, ids = tokenizer.end_id, []
    for document in documents:
        ids += [*tokenizer.encode(document.headed, parse_special=False), end]
    starts = range(0, len(ids) - max_tokens, max(1, max_tokens // 4))
    windows = len(starts)
    if windows == 0:
        return (), (), 0
    sums = torch.zeros(max_tokens, dtype=torch.float64)
    for start in starts:
        row = torch.tensor(ids[start : start + max_tokens + 1], device=model.embed_tokens.weight.device)
        hidden = model.trunk(row[:-1], InFlightView([max_tokens], row.device))
        sums += token_losses(hidden, model.lm_head.weight, row[1:]).double().cpu()
    bits = sums / windows / math.log(2)
    edges = [0, *(256 << i for i in range(24) if 256 << i < max_tokens), max_tokens]
    means = [float(bits[low:high].mean()) for low, high in itertools.pairwise(edges)]
    return tuple(edges), tuple(means), windows
