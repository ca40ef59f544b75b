"""Source text whose own names are replaced, so that they can be known from the context alone.

A model that has read a package before knows its names by heart and need not look for them. Names that nobody has used
can only be copied from where they are defined, in this file or in one before it.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from indexshare.text.imports import definitions

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # of a name: `parse`, `HTTP`, `Error`
_PACKAGES = 4  # a name that this many packages use is everybody's, `append` or `__init__`, and stays
_LEAST_LETTERS, _MOST_LETTERS = 3, 10  # of a word in a new name
_LEAST_USES = 3
_LEAST_SHARE = 0.5  # of a text's own names that are replaced


class Renamer:
    """New names for the names that a text defines, made of words that its corpus uses.

    Args:
        texts: (package, text) of the corpus; packages are taken together.
    """

    def __init__(self, texts: Iterable[tuple[str, str]]) -> None:
        users: dict[str, set[str]] = defaultdict(set)
        words: Counter[str] = Counter()
        for package, text in texts:
            names = set(_IDENTIFIER.findall(text))
            words.update(piece.lower() for name in names for piece in _PIECE.findall(name))
            for name in names:
                users[name].add(package)
        self._common = frozenset(name for name, packages in users.items() if len(packages) >= _PACKAGES)
        self._words = sorted(
            word for word, uses in words.items() if uses >= _LEAST_USES and _LEAST_LETTERS <= len(word) <= _MOST_LETTERS
        )

    def rename(self, texts: Sequence[str], rng: random.Random) -> list[str]:
        """The texts with at least half of the names that they define and use replaced, a name alike in all of them.

        A word keeps its place and its letters' case: `parse_header` may become `cursor_limit`, `HTTPError` `ROWChunk`.
        """
        seen = Counter(name for text in texts for name in _IDENTIFIER.findall(text))
        defined = {name for text in texts for name in definitions(text)}
        own = sorted(name for name in defined - self._common if seen[name] > 1)  # the first place cannot be known
        taken = set(seen)
        chosen = rng.sample(own, round(len(own) * rng.uniform(_LEAST_SHARE, 1.0)))
        new: dict[str, str] = {}
        for name in chosen if self._words else ():
            fresh = _PIECE.sub(lambda match: self._word(match.group(), rng), name)
            if fresh not in taken:
                new[name] = fresh
                taken.add(fresh)
        return [_IDENTIFIER.sub(lambda match: new.get(match.group(), match.group()), text) for text in texts]

    def _word(self, old: str, rng: random.Random) -> str:
        word = rng.choice(self._words)
        if old.isupper():
            return word.upper()
        return word.capitalize() if old[0].isupper() else word
