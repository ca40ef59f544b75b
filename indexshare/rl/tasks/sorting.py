"""Letters to be put in order."""

from __future__ import annotations

import random

from indexshare.rl.tasks.answers import OneAnswer
from indexshare.text.tokenizer import Tokenizer


class Sorting(OneAnswer):
    """`dbca>` is answered by `abcd`.

    Args:
        tokenizer: of the model.
        letters: to be sorted.
        alphabet: what they are drawn from, with repetition.
    """

    name = "sort"

    def __init__(self, tokenizer: Tokenizer, letters: int = 6, alphabet: str = "abcdefghij") -> None:
        super().__init__(tokenizer)
        if letters < 1 or len(set(alphabet)) < 2:
            raise ValueError(
                f"{letters} letters of {alphabet!r}; expected at least 1 letter of at least 2 different ones"
            )
        self.letters, self.alphabet = letters, alphabet
        self.turn_tokens = letters + 2

    def question(self, rng: random.Random) -> str:
        """Random letters."""
        return "".join(rng.choices(self.alphabet, k=self.letters)) + ">"

    def solution(self, question: str) -> str:
        """The same in order."""
        return "".join(sorted(question[:-1]))
