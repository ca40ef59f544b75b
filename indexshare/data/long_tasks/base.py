"""What a long task is, how one of its items is made as long as asked, and how an answer is scored."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Form = Literal["base", "chat"]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One text with its question.

    Attributes:
        context: the long text.
        question: what is asked, for people.
        opening: how the answer begins, so that a model that only continues texts goes on with it.
        answers: what has to be in the answer.
    """

    context: str
    question: str
    opening: str
    answers: tuple[str, ...]

    def prompt(self, form: Form) -> str:
        """The text that a model is given: with the answer's opening (`base`), or as a user's message (`chat`)."""
        asked = f"{self.context}\n\nQuestion: {self.question}\n"
        return asked + f"Answer: {self.opening}" if form == "base" else asked.rstrip("\n")


@dataclass(frozen=True, kw_only=True)
class LongTask:
    """A kind of question.

    Attributes:
        name: of the suite.
        says: one line for people.
        make: an item with `size` units of text (sentences, words or documents) around what is asked; at least `least`.
        least: fewest units.
        answer_tokens: most tokens that an answer needs.
        scoring: `"all"`: the part of the answers that were given; `"any"`: whether one of them was.
    """

    name: str
    says: str
    make: Callable[[random.Random, int], Item]
    least: int = 8
    answer_tokens: int = 64
    scoring: Literal["all", "any"] = "all"


def fit_item(
    task: LongTask, *, seed: int, index: int, length: int, count: Callable[[str], int], form: Form = "base"
) -> Item:
    """The longest item of at most `length` tokens, answer included.

    Args:
        task: what is asked.
        seed, index: the item is a function of them and of the sizes.
        length: tokens of prompt and answer together.
        count: tokens of a text under the model's tokenizer.
        form: how it will be asked.

    Raises:
        ValueError: not even the shortest item fits.
    """
    room = length - task.answer_tokens

    def item(size: int) -> Item:
        return task.make(random.Random(f"{task.name}/{seed}/{index}"), size)

    def fits(size: int) -> bool:
        return count(item(size).prompt(form)) <= room

    if not fits(task.least):
        needed = count(item(task.least).prompt(form)) + task.answer_tokens
        raise ValueError(f"a length is {length} tokens; {task.name} needs at least {needed}")
    low, high = task.least, 2 * task.least
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 100):  # a hundredth of the length is near enough
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return item(low)


def score(task: LongTask, item: Item, answer: str) -> float:
    """How right an answer is, 0 to 1: which of the expected answers occur in it as whole words, in any case."""
    found = [_occurs(expected, answer) for expected in item.answers]
    return float(any(found)) if task.scoring == "any" else sum(found) / len(found)


def _occurs(expected: str, answer: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", answer, re.IGNORECASE) is not None


def hide(rng: random.Random, facts: Sequence[str], filler: Sequence[str]) -> str:
    """Facts at random places among filler sentences, in their own order; the first and last sentence are filler."""
    places = sorted(rng.sample(range(1, len(filler)), len(facts)))
    parts: list[str] = []
    for number, sentence in enumerate(filler):
        while places and places[0] == number:
            places.pop(0)
            parts.append(facts[len(facts) - len(places) - 1])
        parts.append(sentence)
    return " ".join(parts)
