"""In-repository gain: how much better a file is predicted with the rest of its package before it.

Of each held-out file the opening is given; the tokens after it are scored twice, with the package in the context and
with the file alone. The context is chosen by the opening, as `indexshare complete` would choose it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from indexshare.data.splitting import Document
from indexshare.eval.bootstrap import Estimate, ratio
from indexshare.eval.forward import Progress, check_length, counter, token_bits
from indexshare.eval.package import choose_targets, package_context
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer

DEFAULT_CONTEXT = 16_384
DEFAULT_FILES = 24
_TARGET_PART = 4  # a target takes at most a quarter of the context


@dataclass(frozen=True, kw_only=True)
class FileGain:
    """One file: tokens and bytes that were scored, and their bits alone and behind `context_tokens` of its package."""

    name: str
    tokens: int
    num_bytes: int
    context_tokens: int
    context_files: int
    alone: float
    with_package: float


@dataclass(frozen=True, kw_only=True)
class RepositoryReport:
    """Bits per byte of the same tokens alone and with the package; `gain` is the part saved, paired by file.

    `context` is the limit for package and target together, `mean_context_tokens` what the packages filled of it.
    """

    context: int
    files: int
    tokens: int
    mean_context_tokens: float
    alone: Estimate
    with_package: Estimate
    gain: Estimate
    by_file: tuple[FileGain, ...]


def evaluate_repository(
    model: GlmMoeDsa,
    tokenizer: Tokenizer,
    held_out: Sequence[Document],
    everything: Sequence[Document],
    *,
    context: int | None = None,
    files: int = DEFAULT_FILES,
    seed: int = 0,
    progress: Progress | None = None,
) -> RepositoryReport:
    """Score held-out files with and without the rest of their package.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        held_out: files the model was not trained on.
        everything: all files of the text; where a target's package comes from.
        context: tokens for package and file together; `DEFAULT_CONTEXT`, or what the model reads, unless given.
        files: how many files at most; drawn by `seed`.
        progress: told (tokens done, tokens in all).

    Raises:
        ValueError: a context that the model does not have, or no held-out file with a package.
    """
    if context is None:
        context = min(DEFAULT_CONTEXT, model.config.max_position_embeddings)
    check_length(model, context)
    targets = choose_targets(tokenizer, held_out, everything, count=files, seed=seed)
    rows = []
    advance = counter(progress, context * len(targets))
    for target in targets:
        scored = min(len(target.body) - target.opening, context // _TARGET_PART)
        last = target.opening + scored
        own = [*target.header, *target.body[:last]]
        if len(own) >= context:
            raise ValueError(
                f"the context is {context} tokens; {target.document.name!r} alone takes {len(own)} with its opening; "
                "give a longer one"
            )
        before, names = package_context(tokenizer, target, target.opening, context - len(own))
        (with_package,) = token_bits(model, [[*before, *own]])
        (alone,) = token_bits(model, [own])
        if advance is not None:
            advance(context)
        rows.append(
            FileGain(
                name=target.document.name,
                tokens=scored,
                num_bytes=len(tokenizer.decode_bytes(target.body[target.opening : last])),
                context_tokens=len(before),
                context_files=len(names),
                alone=float(alone[-scored:].sum()),
                with_package=float(with_package[-scored:].sum()),
            )
        )
    return _report(context, rows)


def _report(context: int, rows: list[FileGain]) -> RepositoryReport:
    size = [row.num_bytes for row in rows]
    alone, with_package = [row.alone for row in rows], [row.with_package for row in rows]
    return RepositoryReport(
        context=context,
        files=len(rows),
        tokens=sum(row.tokens for row in rows),
        mean_context_tokens=sum(row.context_tokens for row in rows) / len(rows),
        alone=ratio(alone, size),
        with_package=ratio(with_package, size),
        gain=ratio(with_package, alone).changed(-1, 1),
        by_file=tuple(rows),
    )
