"""Gaps in source text: which part of a file is to be filled in between what stands before and after it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

Gap = tuple[int, int]  # characters of the text, start and stop
_MOST_LINES = 8
_MOST_CHARACTERS = 400
_TRIES = 8
_BRACKETS = re.compile(
    r"(?<=[(\[{])[^()\[\]{}\n]{2,120}(?=[)\]}])|(?<= = )[^=\n]{2,120}$|(?<=return )[^\n]{2,120}$", re.M
)
_WORD = re.compile(r"[A-Za-z_]\w{3,}")


def line_gap(text: str, rng: random.Random, lines: int = 1) -> Gap | None:
    """So many lines from a random one on, without the first one's indentation and the last one's line break.

    None where the random place has no such lines: the first and the last one must have words in them.
    """
    starts = [0, *(m.end() for m in re.finditer("\n", text))]
    first = rng.randrange(len(starts))
    if first + lines > len(starts):
        return None
    ends = [*starts[1:], len(text) + 1]
    begin, stop = starts[first], ends[first + lines - 1] - 1
    head, tail = text[begin : ends[first] - 1], text[starts[first + lines - 1] : stop]
    if not (re.search(r"\w", head) and re.search(r"\w", tail)):
        return None
    return begin + len(head) - len(head.lstrip()), stop


def _several_lines(text: str, rng: random.Random) -> Gap | None:
    return line_gap(text, rng, rng.randint(2, _MOST_LINES))


def _rest_of_line(text: str, rng: random.Random) -> Gap | None:
    """From between two words of a line to its end."""
    found = line_gap(text, rng)
    if found is None:
        return None
    places = [m.start() + found[0] for m in re.finditer(r"\b", text[found[0] : found[1]])]
    return rng.choice(places), found[1]


def _expression(text: str, rng: random.Random) -> Gap | None:
    """What stands in brackets, or what is assigned or returned."""
    match = _BRACKETS.search(text, rng.randrange(len(text)))
    return None if match is None else match.span()


def _inside_word(text: str, rng: random.Random) -> Gap | None:
    """From inside a name to its end, or to that of its line."""
    match = _WORD.search(text, rng.randrange(len(text)))
    if match is None:
        return None
    line = text.find("\n", match.end())
    line = len(text) if line < 0 else line
    return rng.randrange(match.start() + 1, match.end()), match.end() if rng.random() < 0.5 else line


def _anything(text: str, rng: random.Random) -> Gap | None:
    start = rng.randrange(len(text))
    return start, min(len(text), start + rng.randint(1, _MOST_CHARACTERS))


_KINDS: tuple[tuple[Callable[[str, random.Random], Gap | None], int], ...] = (
    (line_gap, 3),
    (_several_lines, 4),
    (_rest_of_line, 3),
    (_expression, 2),
    (_inside_word, 2),
    (_anything, 1),
)


def choose_gap(text: str, rng: random.Random) -> Gap:
    """A gap of a random kind: lines, the rest of one, an expression, from inside a word, or any characters.

    Raises:
        ValueError: the text is empty.
    """
    if not text:
        raise ValueError("an empty text has no gap; give one with a line in it")
    for _ in range(_TRIES):
        make = rng.choices([kind for kind, _ in _KINDS], [weight for _, weight in _KINDS])[0]
        gap = make(text, rng)
        if gap is not None and gap[0] < gap[1]:
            return gap
    start = rng.randrange(len(text))
    return start, min(len(text), start + _MOST_CHARACTERS // 4)
