"""Laying out a source tree for the model under a budget of tokens. No torch.

The layout is the one that training uses: every file under a line with its name, the most relevant file last,
and at the very end the file to complete, cut at the cursor. What stands after the cursor is shown to models that have
learned to fill gaps (`fit_after`, `text/fill.py`), and has no say in the choice of files.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import PurePosixPath

from indexshare.repository.source_tree import SourceFile
from indexshare.text.files import SkippedFile
from indexshare.text.imports import imported_modules, is_module

# Weights of what makes a file relevant; the overlap of identifiers lies in [0, 1].
_IMPORTED = 1.5  # more than all the rest together
_SAME_FOLDER = 0.25
_MOST_CHARACTERS_PER_TOKEN = 16
_NEAR_LINES = 100  # identifiers this close to the cursor count twice
_STEADY_LINES = 64  # lines by which a target that is too long loses its beginning
_STEADY_PARTS = 32  # steps of the budget in which a target takes room
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{2,}")


@dataclass(frozen=True, kw_only=True)
class PackedFile:
    """One file in the context; `lines` of `total_lines` are shown (the first; of the target the last)."""

    name: str
    tokens: int
    lines: int
    total_lines: int


@dataclass(frozen=True, kw_only=True)
class PackedContext:
    """A prompt: `pieces` in order, one per file, to be joined by the separator the budget was counted with.

    Attributes:
        pieces: header and text of each file; the last is the target up to the cursor.
        files: one entry per piece.
        left_out: names that the budget had no room for, most relevant first.
        skipped: what could not be read, from the tree.
        tokens: sum of all pieces and separators, as counted by the callable; at most the budget.
    """

    pieces: tuple[str, ...]
    files: tuple[PackedFile, ...]
    left_out: tuple[str, ...]
    skipped: tuple[SkippedFile, ...]
    tokens: int


def pack_context(
    files: Sequence[SourceFile],
    *,
    target_name: str,
    before_cursor: str,
    budget: int,
    count_tokens: Callable[[str], int],
    header: Callable[[str], str],
    separator_tokens: int = 0,
    skipped: Sequence[SkippedFile] = (),
    steady: bool = False,
) -> PackedContext:
    """Choose and order files for a completion.

    The target is the first to claim the budget: when even its own text is too long, its last lines are kept.
    Then files are taken by relevance until one does not fit; of that one the first lines that fit are kept.

    Args:
        files: the tree; the target itself is left out by name.
        target_name: name of the file to complete.
        before_cursor: its text up to the cursor.
        budget: tokens for everything, headers and separators included.
        count_tokens: tokens of a text.
        header: the line that precedes a file of this name.
        separator_tokens: tokens put between two files.
        skipped: entries that could not be read, handed through to the result.
        steady: leave the beginning as it is when the text before the cursor changes a little, for the sake of a cache
            of prefixes: files stand by kind (imported, same folder) and name, and room is given out in steps.

    Raises:
        ValueError: the budget is too small for the target's last line.
    """
    target = _fit_target(target_name, before_cursor, budget, count_tokens, header, _STEADY_LINES if steady else 1)
    step = max(1, budget // _STEADY_PARTS) if steady else 1
    room = budget - -(-target[1].tokens // step) * step
    others = rank_files([f for f in files if f.name != target_name], target_name, before_cursor)
    chosen: list[tuple[str, PackedFile]] = []
    left_out: list[str] = []
    for position, file in enumerate(others):
        fitted = _fit_head(file, room - separator_tokens, count_tokens, header)
        if fitted is not None:
            chosen.append(fitted)
            room -= fitted[1].tokens + separator_tokens
        if fitted is None or fitted[1].lines < fitted[1].total_lines:
            rest = others[position + (fitted is not None) :]
            left_out = [f.name for f in rest]
            break
    if steady:
        imports = imported_modules(before_cursor, PurePosixPath(target_name))
        chosen.sort(key=lambda piece: (_kind(piece[1].name, target_name, imports), piece[1].name), reverse=True)
    ordered = [*reversed(chosen), target]
    return PackedContext(
        pieces=tuple(piece for piece, _ in ordered),
        files=tuple(entry for _, entry in ordered),
        left_out=tuple(left_out),
        skipped=tuple(skipped),
        tokens=sum(entry.tokens for _, entry in ordered) + separator_tokens * (len(ordered) - 1),
    )


def _fit_target(
    name: str, before: str, budget: int, count: Callable[[str], int], header: Callable[[str], str], grain: int
) -> tuple[str, PackedFile]:
    """The target under its header; too long, it loses lines at its front, `grain` at a time if that leaves any."""
    lines = before.split("\n")

    def text(kept: int) -> str:
        return header(name) + "\n".join(lines[len(lines) - kept :])

    if count(text(len(lines))) <= budget:
        kept = len(lines)
    else:
        kept = bisect_right(range(1, len(lines)), budget, key=lambda k: count(text(k)))
        kept -= 0 if kept <= grain else -(len(lines) - kept) % grain
    if kept == 0:
        least = count(text(1))
        raise ValueError(f"the context budget is {budget} tokens; the line at the cursor needs {least} already")
    piece = text(kept)
    return piece, PackedFile(name=name, tokens=count(piece), lines=kept, total_lines=len(lines))


def _fit_head(
    file: SourceFile, room: int, count: Callable[[str], int], header: Callable[[str], str]
) -> tuple[str, PackedFile] | None:
    """The file under its header, cut at the end to whole lines when too long; None when no line fits."""
    lines = file.text.splitlines(keepends=True)

    def text(kept: int) -> str:
        return header(file.name) + "".join(lines[:kept])

    if room <= 0:
        return None
    # A megabyte is not tokenised to learn that it is too long; only runs of one sign pass this many a token.
    within = bisect_right(list(accumulate(map(len, lines))), _MOST_CHARACTERS_PER_TOKEN * room)
    whole = within == len(lines) and count(text(within)) <= room
    kept = within if whole else bisect_right(range(1, within + 1), room, key=lambda k: count(text(k)))
    if kept == 0:
        return None
    piece = text(kept)
    return piece, PackedFile(name=file.name, tokens=count(piece), lines=kept, total_lines=len(lines))


def fit_after(after: str, room: int, count: Callable[[str], int]) -> str:
    """The first whole lines of the text after the cursor that fit `room` tokens; empty where it says nothing."""
    lines = after[: _MOST_CHARACTERS_PER_TOKEN * max(0, room)].splitlines(keepends=True)
    kept = bisect_right(range(1, len(lines) + 1), room, key=lambda k: count("".join(lines[:k])))
    shown = "".join(lines[:kept])
    return shown if shown.strip() else ""


def rank_files(files: Sequence[SourceFile], target_name: str, before_cursor: str) -> list[SourceFile]:
    """Order files by relevance to the text before the cursor, most relevant first; ties by name.

    Files with the target's suffix come before all others. Then: imported by the target, in the same folder,
    and sharing identifiers with the target (rare ones count more; long files are not favoured).
    """
    target = PurePosixPath(target_name)
    imports = imported_modules(before_cursor, target)
    words = {file.name: set(_IDENTIFIER.findall(file.text)) for file in files}
    spread = Counter(word for found in words.values() for word in found)
    near = before_cursor.split("\n")[-_NEAR_LINES:]
    wanted = dict.fromkeys(_IDENTIFIER.findall(before_cursor), 1.0)
    wanted.update((word, 2.0) for word in _IDENTIFIER.findall("\n".join(near)))

    def weight(word: str) -> float:
        return wanted[word] * math.log(1.0 + len(files) / spread[word])

    # Summed in sorted order: floating-point sums over a set would depend on the hash seed.
    overlap = {
        name: sum(weight(w) for w in sorted(found & wanted.keys())) / math.sqrt(1.0 + len(found))
        for name, found in words.items()
    }
    most = max(overlap.values(), default=0.0) or 1.0

    def relevance(file: SourceFile) -> float:
        return overlap[file.name] / most + _kind(file.name, target_name, imports)[1]

    def key(file: SourceFile) -> tuple[bool, float, str]:
        return PurePosixPath(file.name).suffix != target.suffix, -relevance(file), file.name

    return sorted(files, key=key)


def _kind(name: str, target_name: str, imports: Collection[str]) -> tuple[bool, float]:
    """What makes a file relevant whatever the words in it: the target's suffix, then import and folder."""
    path, target = PurePosixPath(name), PurePosixPath(target_name)
    score = _IMPORTED * any(is_module(path, dotted) for dotted in imports)
    return path.suffix == target.suffix, score + _SAME_FOLDER * (path.parent == target.parent)
