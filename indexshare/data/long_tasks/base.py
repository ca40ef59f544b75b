"""What a long task is, how one of its items is made as long as asked, and how an answer is read and scored."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Form = Literal["base", "chat"]
FORMS: tuple[Form, ...] = ("base", "chat")
VERSION = 1  # of the texts and questions: a new one wherever a seed gives another question than before
_SENTENCES = 96  # tokens that an assistant may put around an answer


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
            More units are a longer text, however many there are.
        least: fewest units.
        answer_tokens: most tokens that an answer needs when it is written without a word around it.
        scoring: `"all"`: the part of the answers that were given; `"any"`: whether one of them was.
    """

    name: str
    says: str
    make: Callable[[random.Random, int], Item]
    least: int = 8
    answer_tokens: int = 64
    scoring: Literal["all", "any"] = "all"

    def room(self, form: Form) -> int:
        """Most tokens of an answer in a form: an assistant answers in sentences."""
        return self.answer_tokens + (_SENTENCES if form == "chat" else 0)


def fit_item(
    task: LongTask,
    *,
    seed: int,
    index: int,
    length: int,
    count: Callable[[str], int],
    form: Form = "base",
    answer_tokens: int | None = None,
) -> Item:
    """The longest item of at most `length` tokens, answer included.

    Args:
        task: what is asked.
        seed, index: the item is a function of them and of the sizes.
        length: tokens of prompt and answer together.
        count: tokens of a prompt under the model's tokenizer.
        form: how it will be asked.
        answer_tokens: kept free for the answer; what the task needs unless given.

    Raises:
        ValueError: not even the shortest item fits.
    """
    kept = task.room(form) if answer_tokens is None else answer_tokens

    def item(size: int) -> Item:
        return task.make(random.Random(f"{task.name}/{seed}/{index}"), size)

    def fits(size: int) -> bool:
        return count(item(size).prompt(form)) <= length - kept

    if not fits(task.least):
        needed = count(item(task.least).prompt(form)) + kept
        raise ValueError(f"a length is {length} tokens; {task.name} needs at least {needed}")
    low, high = task.least, 2 * task.least
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 100):  # a hundredth of the length is near enough
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return item(low)


def read_answer(text: str, form: Form) -> str:
    """The part of what a model wrote that is its answer.

    Args:
        text: a continuation, or an assistant's message.
        form: of a continuation, the text up to the first line break that has something before it; of a message, what
            comes after its thoughts.
    """
    return text.lstrip().split("\n", 1)[0] if form == "base" else text.rsplit("</think>", 1)[-1].strip()


def score(task: LongTask, item: Item, answer: str) -> float:
    """How right an answer is, 0 to 1: which of the expected answers occur in it as whole words, in any case."""
    return part_found(item.answers, answer, task.scoring)


def part_found(expected: Sequence[str], answer: str, scoring: str) -> float:
    """The part of the expected answers that occur (`all`), or whether one of them does (`any`)."""
    found = [re.search(rf"(?<!\w){re.escape(one)}(?!\w)", answer, re.IGNORECASE) is not None for one in expected]
    return float(any(found)) if scoring == "any" else sum(found) / len(found)


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
