"""Fresh names and values: random, so that nothing but the text that states them can tell them."""

from __future__ import annotations

import keyword
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from indexshare.data.tasks import NOUNS, VERBS

Case = Literal["lower", "upper", "camel"]
Spelling = Literal["python", "double", "bare"]
# A number or a short string, as Python spells it; other values are left alone.
LITERAL = r"(?:\d[\d_]*(?:\.\d+)?|'[^'\"\n\\{}]{2,30}'|\"[^'\"\n\\{}]{2,30}\")"
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # of a name: `parse`, `HTTP`, `Error`
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LEAST_LETTERS, _MOST_LETTERS = 3, 9  # of a word in a new name


@dataclass(frozen=True)
class Value:
    """What is stated: `text` without quotes, and the quote around it in Python; none around a number or a bare name."""

    text: str
    quote: str = ""
    is_name: bool = False

    @property
    def stated(self) -> str:
        """As the statement spells it."""
        return f"{self.quote}{self.text}{self.quote}"

    def asked(self, spelling: Spelling) -> str:
        """As an answer spells it: a string or a name in quotes, but for `bare` text."""
        if spelling == "bare" or not (self.quote or self.is_name):
            return self.text
        quote = '"' if spelling == "double" else self.quote or "'"
        return f"{quote}{self.text}{quote}"


def words_of(texts: Iterable[str]) -> list[str]:
    """Words that names of these texts are made of, and some that names are made of everywhere; sorted."""
    found: Counter[str] = Counter()
    for text in texts:
        for name in set(_IDENTIFIER.findall(text)):
            found.update(piece.lower() for piece in _PIECE.findall(name))
    own = {word for word in found if _LEAST_LETTERS <= len(word) <= _MOST_LETTERS and not keyword.iskeyword(word)}
    return sorted(own | {*NOUNS, *VERBS})


def new_name(rng: random.Random, words: Sequence[str], case: Case) -> str:
    """A name of two or three words."""
    chosen = rng.sample(words, rng.choice((2, 2, 3)))
    if case == "camel":
        return "".join(word.capitalize() for word in chosen)
    return "_".join(chosen).upper() if case == "upper" else "_".join(chosen)


def near_name(name: str, rng: random.Random, words: Sequence[str]) -> str:
    """A name that differs in one word; its letters' case is kept."""
    pieces = list(_PIECE.finditer(name))
    if not pieces:
        return f"{name}_{rng.choice(words)}"
    piece = rng.choice(pieces)
    word = rng.choice(words)
    old = piece.group()
    cased = word.upper() if old.isupper() else word.capitalize() if old[0].isupper() else word
    return name[: piece.start()] + cased + name[piece.end() :]


def new_literal(rng: random.Random, words: Sequence[str], like: str = "") -> Value:
    """A number or a string; of the kind of `like` where that is one."""
    if like[:1] in ("'", '"') or (not like and rng.random() < 0.4):
        text = rng.choice("-_ .").join(rng.sample(words, rng.choice((1, 2, 2))))
        return Value(text, like[:1] or rng.choice("''\""))
    if "." in like:
        return Value(f"{rng.randrange(100)}.{rng.randrange(100, 1000)}")
    digits = max(3, min(6, len(like))) if like else rng.randint(3, 6)
    return Value(str(rng.randrange(10 ** (digits - 1), 10**digits)))


def new_module(rng: random.Random, words: Sequence[str]) -> Value:
    """A dotted name."""
    return Value(".".join(rng.sample(words, rng.choice((1, 2, 2)))), is_name=True)
