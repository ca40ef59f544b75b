"""What sparsity and what sharing cost, each by itself, at several context lengths.

* The price of sparsity: a model with its selection against the same weights with full attention.
* The price of sharing: the model against one in which every layer runs its own indexer, both with their selections.
  That is either its ancestor, trained on the same tokens without sharing, or the same checkpoint where it still holds
  the indexers of its Shared layers.

Files lie end to end as in training. The same stretches of text are scored at every length, in windows of that length,
so that the lengths differ in context alone. File lines and ends of text are context and do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from indexshare.checkpoint.load import load_model
from indexshare.checkpoint.surgery import all_full
from indexshare.config.shipped import model_directory
from indexshare.data.splitting import Document
from indexshare.eval.bootstrap import Estimate, ratio
from indexshare.eval.forward import FULL, SELECTION, Progress, check_length, counter, token_bits
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import END_OF_TEXT, Tokenizer, file_header

DEFAULT_LENGTHS = (2048, 8192, 32768)
DEFAULT_TOKENS = 65_536
_NO_FILE = -1


@dataclass(frozen=True, kw_only=True)
class PriceRow:
    """Bits per byte at one length, and what follows from them; the last two are None without an all-Full model.

    A price is the part by which bits grow: 0.01 is 1 % more. All intervals are over files, prices paired.
    """

    length: int
    selection: Estimate
    full: Estimate
    price_of_sparsity: Estimate
    every_layer_full: Estimate | None
    price_of_sharing: Estimate | None


@dataclass(frozen=True, kw_only=True)
class PriceReport:
    """Prices at each length over the same `tokens` tokens (`num_bytes` bytes) of `files` files."""

    files: int
    tokens: int
    num_bytes: int
    rows: tuple[PriceRow, ...]


@dataclass(frozen=True, kw_only=True)
class LaidText:
    """Files laid end to end: `ids` int64 `[T]`, and of each token its file (-1 where it does not count) and bytes."""

    ids: np.ndarray
    owner: np.ndarray
    num_bytes: np.ndarray


def lay_out(documents: Sequence[Document], tokenizer: Tokenizer) -> LaidText:
    """Every file under its file line and closed by the end-of-text token, in the order given."""
    end = tokenizer.id_of(END_OF_TEXT)
    headers = tokenizer.encode_batch([file_header(d.name) for d in documents], parse_special=False)
    bodies = tokenizer.encode_batch([d.text for d in documents], parse_special=False)
    ids, owner = list[int](), list[int]()
    for number, (header, body) in enumerate(zip(headers, bodies, strict=True)):
        ids += [*header, *body, end]
        owner += [_NO_FILE] * len(header) + [number] * len(body) + [_NO_FILE]
    sizes = [len(tokenizer.token_bytes(token)) for token in ids]
    return LaidText(ids=np.asarray(ids), owner=np.asarray(owner), num_bytes=np.asarray(sizes))


def check_selects(model: GlmMoeDsa, length: int) -> None:
    """Refuse (ValueError) a length at which the selection keeps everything: no price could be seen there."""
    topk = model.config.index_topk
    if length <= topk:
        raise ValueError(f"a length is {length}, index_topk {topk}: nothing is left out there; give longer ones")


def usable_lengths(model: GlmMoeDsa, row_tokens: int, lengths: Sequence[int] = DEFAULT_LENGTHS) -> tuple[int, ...]:
    """Those of `lengths` at which the model selects at all, and which context and text can fill."""
    most = min(model.config.max_position_embeddings, row_tokens - 1)
    return tuple(length for length in lengths if model.config.index_topk < length <= most)


def load_every_layer_full(
    name: str,
    model: GlmMoeDsa,
    tokenizer: Tokenizer,
    ancestor: str | None,
    *,
    dtype: str | torch.dtype | None,
    device: str,
) -> GlmMoeDsa | None:
    """The model to compare with for the price of sharing.

    Args:
        name, model, tokenizer: the model whose price is asked.
        ancestor: a model in which every layer is Full, trained on the same text; None to look for indexers of the
            Shared layers in the model's own checkpoint.
        dtype, device: as in `load_model`.

    Returns:
        None where there is no such model: no ancestor, and no indexers of Shared layers (or no Shared layers).

    Raises:
        ValueError: the ancestor cannot be loaded or has another tokenizer.
    """
    if ancestor is not None:
        other = Tokenizer.load(model_directory(ancestor))
        if other.fingerprint != tokenizer.fingerprint:
            raise ValueError(f"the ancestor {ancestor} has another tokenizer than {name}; their bits would not compare")
        return load_model(ancestor, dtype=dtype, device=device)
    if not model.plan.shared_layers:
        return None
    every = all_full(model.config).indexer_types
    try:
        return load_model(name, dtype=dtype, device=device, config_overrides={"indexer_types": every})
    except ValueError:  # it loaded as it is: what it lacks are those indexers
        return None


def evaluate_prices(
    model: GlmMoeDsa,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    lengths: Sequence[int] | None = None,
    every_layer_full: GlmMoeDsa | None = None,
    max_tokens: int = DEFAULT_TOKENS,
    progress: Progress | None = None,
) -> PriceReport:
    """Prices of sparsity and sharing on held-out files.

    Args:
        model: in evaluation mode.
        tokenizer: of both models.
        documents: text that neither model was trained on.
        lengths: of the windows; those of `DEFAULT_LENGTHS` that model and text can fill unless given.
        every_layer_full: the model without sharing to compare with.
        max_tokens: tokens to score at each length, in stretches spread evenly over the text; at least one stretch
            of the longest length is scored.
        progress: told (tokens done, tokens in all).

    Raises:
        ValueError: no documents, a length that text or model cannot fill, one at which nothing is selected, or an
            `every_layer_full` that has Shared layers or another vocabulary.
    """
    if not documents:
        raise ValueError("no documents to score")
    row = lay_out(documents, tokenizer)
    lengths = usable_lengths(model, len(row.ids)) if lengths is None else tuple(sorted(set(lengths)))
    _check(model, every_layer_full, lengths, len(row.ids))
    stretches = _stretches(len(row.ids), max(lengths), max_tokens)
    models = [(model, SELECTION), (model, FULL)]
    if every_layer_full is not None:
        models.append((every_layer_full, SELECTION))
    total = len(lengths) * len(models) * sum(map(len, stretches))
    advance = counter(progress, total)
    rows, scored = [], _places(row, stretches)
    num_bytes = _by_file(row, scored, row.num_bytes[scored])
    for length in lengths:
        windows = [row.ids[s.start : s.stop + 1] for s in _cut(stretches, length)]
        texts = [window.tolist() for window in windows]
        bits = [torch.cat(token_bits(m, texts, kind, progress=advance)).numpy() for m, kind in models]
        rows.append(_price_row(length, [_by_file(row, scored, b) for b in bits], num_bytes))
    counted = scored[row.owner[scored] != _NO_FILE]
    return PriceReport(
        files=len(num_bytes), tokens=len(counted), num_bytes=int(row.num_bytes[counted].sum()), rows=tuple(rows)
    )


def _check(model: GlmMoeDsa, other: GlmMoeDsa | None, lengths: Sequence[int], row_tokens: int) -> None:
    topk = model.config.index_topk
    if not lengths:
        raise ValueError(
            f"none of the lengths {DEFAULT_LENGTHS} is above index_topk ({topk}) and within the model's context "
            f"and the text's {row_tokens} tokens; give lengths, or more text"
        )
    for length in lengths:
        check_length(model, length)
        check_selects(model, length)
        if length >= row_tokens:
            raise ValueError(f"a length is {length}, the text has {row_tokens} tokens; give more text, or less length")
    if other is None:
        return
    check_length(other, max(lengths))
    if other.plan.shared_layers:
        raise ValueError(
            f"the model to compare with has the plan {other.plan.pattern}; expected one whose layers are all Full"
        )
    if other.config.vocab_size != model.config.vocab_size:
        sizes = f"{other.config.vocab_size} entries against {model.config.vocab_size}"
        raise ValueError(f"the model to compare with has another vocabulary ({sizes}); bits would not compare")


def _stretches(row_tokens: int, length: int, max_tokens: int) -> list[range]:
    """Input positions to score: stretches of `length`, spread evenly, each a whole number of its own lengths apart."""
    there = (row_tokens - 1) // length
    wanted = min(there, max(1, max_tokens // length))
    chosen = np.unique(np.linspace(0, there - 1, wanted).round().astype(int))
    return [range(int(i) * length, (int(i) + 1) * length) for i in chosen]


def _cut(stretches: Sequence[range], length: int) -> Iterator[range]:
    """The windows of `length` in each stretch; the last one of a stretch may be shorter."""
    for stretch in stretches:
        for start in range(stretch.start, stretch.stop, length):
            yield range(start, min(start + length, stretch.stop))


def _places(row: LaidText, stretches: Sequence[range]) -> np.ndarray:
    """Places of the targets in the row, in the order in which they are scored."""
    return np.concatenate([np.arange(s.start + 1, s.stop + 1) for s in stretches])


def _by_file(row: LaidText, scored: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of one value per scored place, for each file of which anything was scored."""
    owner = row.owner[scored]
    counted = owner != _NO_FILE
    files, which = np.unique(owner[counted], return_inverse=True)
    return np.bincount(which, weights=values[counted], minlength=len(files))


def _price_row(length: int, bits: list[np.ndarray], num_bytes: np.ndarray) -> PriceRow:
    selection, full, *rest = bits
    size = num_bytes.tolist()
    return PriceRow(
        length=length,
        selection=ratio(selection.tolist(), size),
        full=ratio(full.tolist(), size),
        price_of_sparsity=ratio(selection.tolist(), full.tolist()).changed(1, -1),
        every_layer_full=ratio(rest[0].tolist(), size) if rest else None,
        price_of_sharing=ratio(selection.tolist(), rest[0].tolist()).changed(1, -1) if rest else None,
    )
