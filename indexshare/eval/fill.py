"""Gaps in held-out files: the middle with and without the text after it, exactly and in bits per character.

A gap is a line, or two to five, from behind the first one's indentation to the end of the last. With the text after it
the prompt is that of `indexshare complete` for a model that has learned to fill gaps, and the middle is right when
greedy decoding writes it and then ends. Without, the model goes on from the text before, and a line break must follow.
As in `retrieval.py` one forward pass tells both: the middle is written if each of its tokens is the most likely one. (A
model that would write the same text in other tokens is not given credit for it, on either side.)
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from indexshare.data.filling import line_gap
from indexshare.data.splitting import Document, package_of
from indexshare.eval.bootstrap import Estimate, proportion, ratio
from indexshare.eval.forward import Progress, counter, hidden_states, predictions
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.fill import learned_fill
from indexshare.text.tokenizer import Tokenizer, file_header
from indexshare.train.losses import token_losses

KINDS = ("line", "lines")
DEFAULT_CONTEXT, DEFAULT_FILES = 2048, 40
SUFFIX_PART = 4  # the text after the gap takes at most a quarter of the context
_MOST_LINES = 5
_LEAST_LETTERS = 4  # of a middle
_TRIES = 40
_CHARACTERS_PER_TOKEN = 6


@dataclass(frozen=True, kw_only=True)
class Case:
    """One gap: `kind`, file, first line, characters of the middle, and what became of it.

    `exact_with` and `bits_with` are with the text after it, None for a model that has not learned to use that.
    """

    kind: str
    file: str
    line: int
    characters: int
    exact_with: bool | None
    exact_without: bool
    bits_with: float | None
    bits_without: float


@dataclass(frozen=True, kw_only=True)
class FillReport:
    """All gaps; `learned` says whether the model fills them, `unseen` whether they lie in packages held out whole."""

    context: int
    learned: bool
    unseen: bool
    cases: tuple[Case, ...]

    def of(self, kind: str) -> list[Case]:
        """The gaps of a kind."""
        return [case for case in self.cases if case.kind == kind]

    def exact(self, kind: str, *, suffix: bool) -> Estimate | None:
        """Part of middles written exactly, with its Wilson interval; None where the model does not fill gaps."""
        if suffix and not self.learned:
            return None
        marks = [case.exact_with if suffix else case.exact_without for case in self.of(kind)]
        return proportion(sum(map(bool, marks)), len(marks))

    def bits(self, kind: str, *, suffix: bool) -> Estimate | None:
        """Bits per character of the middles, resampled by file."""
        if suffix and not self.learned:
            return None
        bits = [(case.bits_with if suffix else case.bits_without) or 0.0 for case in self.of(kind)]
        return ratio(bits, [case.characters for case in self.of(kind)])

    def saved(self, kind: str) -> Estimate | None:
        """Part of the bits that the text after the gap saves, paired by file."""
        if not self.learned:
            return None
        cases = self.of(kind)
        return ratio([c.bits_with or 0.0 for c in cases], [c.bits_without for c in cases]).changed(-1, 1)


def evaluate_fill(
    model: GlmMoeDsa,
    tokenizer: Tokenizer,
    held_out: Sequence[Document],
    everything: Sequence[Document] = (),
    *,
    context: int | None = None,
    files: int = DEFAULT_FILES,
    seed: int = 0,
    progress: Progress | None = None,
) -> FillReport:
    """Let a model fill gaps in held-out files, one of each kind in a file.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        held_out: files that the model was not trained on; those of packages of which it has seen nothing are taken,
            where there are any.
        everything: all files of the text; tells which packages these are.
        context: tokens of a prompt with its middle; 2,048, or what the model reads, unless given.
        files: how many at most.
        seed: of files and gaps.
        progress: told (gaps done, gaps in all).

    Raises:
        ValueError: no file has a gap of each kind.
    """
    context = context or min(DEFAULT_CONTEXT, model.config.max_position_embeddings)
    documents, unseen = unseen_documents(held_out, everything)
    order = random.Random(f"fill/{seed}").sample(documents, len(documents))
    chosen: list[tuple[Document, dict[str, tuple[int, int]]]] = []
    for document in order:
        gaps = _gaps(document.text, random.Random(f"fill/{seed}/{document.name}"), tokenizer, context)
        if len(gaps) == len(KINDS):
            chosen.append((document, gaps))
        if len(chosen) == files:
            break
    if not chosen:
        raise ValueError(f"none of {len(documents)} files has a line and several lines to fill in; give other files")
    advance, cases = counter(progress, len(KINDS) * len(chosen)), list[Case]()
    for document, gaps in chosen:
        for kind, gap in gaps.items():
            cases.append(_case(model, tokenizer, document, kind, gap, context))
            if advance is not None:
                advance(1)
    return FillReport(context=context, learned=learned_fill(tokenizer) is not None, unseen=unseen, cases=tuple(cases))


def unseen_documents(held_out: Sequence[Document], everything: Sequence[Document]) -> tuple[list[Document], bool]:
    """Files of packages that are held out whole, and True; all held-out files and False where there is no such one."""
    held = {document.name for document in held_out}
    seen = {package_of(document.name) for document in everything if document.name not in held}
    unseen = [document for document in held_out if package_of(document.name) not in seen | {""}]
    return (unseen, True) if unseen else (list(held_out), False)


def _gaps(text: str, rng: random.Random, tokenizer: Tokenizer, context: int) -> dict[str, tuple[int, int]]:
    """One gap of each kind, in the inner part of the text; short enough for the context."""
    found: dict[str, tuple[int, int]] = {}
    for kind in KINDS:
        for _ in range(_TRIES if text else 0):
            gap = line_gap(text, rng, 1 if kind == "line" else rng.randint(2, _MOST_LINES))
            if gap is None:
                continue
            before, middle, after = text[: gap[0]], text[gap[0] : gap[1]], text[gap[1] :]
            short = len(middle) < context and len(tokenizer.encode(middle, parse_special=False)) <= context // 4
            if short and before.strip() and after.strip() and sum(map(str.isalpha, middle)) >= _LEAST_LETTERS:
                found[kind] = gap
                break
    return found


def _case(
    model: GlmMoeDsa, tokenizer: Tokenizer, document: Document, kind: str, gap: tuple[int, int], context: int
) -> Case:
    text, most = document.text, _CHARACTERS_PER_TOKEN * context
    parts = [file_header(document.name), text[: gap[0]][-most:], text[gap[0] : gap[1]], text[gap[1] :][:most]]
    header, before, middle, after = tokenizer.encode_batch(parts, parse_special=False)
    fill = learned_fill(tokenizer)
    room = context - len(header) - len(middle) - 5
    after = after[: room // SUFFIX_PART]
    plain = [*header, *before[-room:]]
    exact, bits = _written(model, tokenizer, plain, middle, ends=False)
    filled: tuple[Any, Any] = (None, None)
    if fill is not None:
        prompt = [*header, *fill.prompt(before[-(room - len(after)) :], after)]
        filled = _written(model, tokenizer, prompt, middle, ends=True)
    return Case(
        kind=kind, file=document.name, line=text.count("\n", 0, gap[0]) + 1, characters=gap[1] - gap[0],
        exact_with=filled[0], exact_without=exact, bits_with=filled[1], bits_without=bits,
    )  # fmt: skip


@torch.no_grad()
def _written(
    model: GlmMoeDsa, tokenizer: Tokenizer, prompt: list[int], middle: list[int], *, ends: bool
) -> tuple[bool, float]:
    """Whether greedy decoding writes the middle after the prompt and stops, and the middle's bits."""
    hidden, _ = hidden_states(model, [[*prompt, *middle]])
    rows = hidden[len(prompt) - 1 :]
    *said, last = predictions(model, rows)
    stops = last in tokenizer.eos_ids if ends else tokenizer.token_bytes(last)[:1] in (b"\n", b"\r")
    targets = torch.tensor(middle, device=hidden.device)
    losses = token_losses(rows[:-1], model.lm_head.weight, targets)
    return said == middle and stops, float(losses.double().sum()) / math.log(2)
