"""Sums, written from the last digit on."""

from __future__ import annotations

import random

from indexshare.rl.tasks.answers import OneAnswer
from indexshare.text.tokenizer import Tokenizer


class Addition(OneAnswer):
    """`27+58=` is answered by `58`: the digits of 85 from the last one on, in the order in which carries arise.

    Args:
        tokenizer: of the model.
        digits: of each summand.
    """

    name = "add"

    def __init__(self, tokenizer: Tokenizer, digits: int = 2) -> None:
        super().__init__(tokenizer)
        if digits < 1:
            raise ValueError(f"{digits} digits; expected at least 1")
        self.digits = digits
        self.turn_tokens = digits + 3

    def question(self, rng: random.Random) -> str:
        """Two random numbers."""
        low, high = 10 ** (self.digits - 1), 10**self.digits - 1
        return f"{rng.randint(low, high)}+{rng.randint(low, high)}="

    def solution(self, question: str) -> str:
        """Their sum, reversed."""
        first, second = question[:-1].split("+")
        return str(int(first) + int(second))[::-1]
