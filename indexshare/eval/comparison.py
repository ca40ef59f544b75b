"""Two models on the same held-out files: what fine-tuning changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from indexshare.data.splitting import Document
from indexshare.eval.bootstrap import Estimate, ratio
from indexshare.eval.held_out import xz_bits
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer
from indexshare.train.evaluate import bits_by_file

DEFAULT_BYTES = 100_000


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Bits per byte of both models and of `xz -9e`, file by file, with the selection of each model.

    `change` is tuned over base less one: -0.3 is 30 % fewer bits, with its paired interval.
    """

    files: int
    num_bytes: int
    max_tokens: int
    base: Estimate
    tuned: Estimate
    xz: float
    change: Estimate


def compare_models(
    base: tuple[GlmMoeDsa, Tokenizer],
    tuned: tuple[GlmMoeDsa, Tokenizer],
    documents: Sequence[Document],
    *,
    max_tokens: int = 8192,
    max_bytes: int = DEFAULT_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Score the documents, at most about `max_bytes` of them, with both models.

    Args:
        base, tuned: models in evaluation mode with their tokenizers, which may differ.
        documents: text that neither was trained on.
        max_tokens: longest context.
        max_bytes: of documents that are scored; the first ones, the last of them cut.
        progress: told (documents done, documents in all).

    Raises:
        ValueError: no documents, or a context too short for a file's own line.
    """
    chosen = _within(documents, max_bytes)
    if not chosen:
        raise ValueError("no documents to compare on")
    sizes = list[int]()
    bits: tuple[list[float], list[float]] = ([], [])
    for done, document in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen))
        for (model, tokenizer), column in zip((base, tuned), bits, strict=True):
            ((num_bytes, needed),) = bits_by_file(model, tokenizer, [document], max_tokens=max_tokens)
            column.append(needed)
        sizes.append(num_bytes)
    return Comparison(
        files=len(chosen),
        num_bytes=sum(sizes),
        max_tokens=max_tokens,
        base=ratio(bits[0], sizes),
        tuned=ratio(bits[1], sizes),
        xz=sum(xz_bits(document.text) for document in chosen) / sum(sizes),
        change=ratio(bits[1], bits[0]).changed(1, -1),
    )


def _within(documents: Sequence[Document], max_bytes: int) -> list[Document]:
    """Documents of about so many bytes; the one that does not fit ends at a line where it can."""
    chosen, left = list[Document](), max_bytes
    for document in documents:
        size = len(document.text.encode("utf-8"))
        if size > left:
            text = document.text.encode("utf-8")[:left].decode("utf-8", "ignore")
            text = text[: text.rfind("\n") + 1] or text
            return [*chosen, Document(name=document.name, text=text)] if text.strip() else chosen
        chosen.append(document)
        left -= size
    return chosen
