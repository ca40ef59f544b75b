"""Tasks of one question and one answer, checked as a whole."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from hashlib import blake2b

from indexshare.rl.environment import Environment, Opening, Reply, Task

_HELD_OUT = 8  # one problem in so many is held out


def is_held_out(question: str) -> bool:
    """Whether a problem is held out: by a hash of its text, so that no number draws it for training."""
    return blake2b(question.encode(), digest_size=4).digest()[0] % _HELD_OUT == 0


class OneAnswer(Task):
    """A question, and the one answer that earns 1; everything else earns 0.

    Subclasses say how a question is drawn and answered.
    """

    @abstractmethod
    def question(self, rng: random.Random) -> str:
        """Text of a random problem."""

    @abstractmethod
    def solution(self, question: str) -> str:
        """Its answer."""

    def environment(self, number: int, *, held_out: bool = False) -> Environment:
        """The problem of a number."""
        rng = random.Random(f"{self.name}/{held_out}/{number}")
        question = self.question(rng)
        while is_held_out(question) != held_out:
            question = self.question(rng)
        return _Question(self, question)


class _Question(Environment):
    def __init__(self, task: OneAnswer, question: str) -> None:
        self._task, self._question = task, question
        self._solution = task.solution(question)

    def reset(self) -> Opening:
        return Opening(user=self._task.spell(self._question))

    def step(self, action: Sequence[int]) -> Reply:
        right = self._task.read(action) == self._solution
        return Reply(reward=float(right), done=True, details={"correct": right})

    def expert(self) -> list[int]:
        return self._task.answer(self._solution)
