"""Long questions put to a model or a server, answered greedily; scores by length with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from indexshare.data.long_tasks import Form, Item, LongTask, fit_item, read_answer, score
from indexshare.eval.answers import AnswerLog, key_of
from indexshare.eval.asking import Answer, Asker, Counter, Question, Refused
from indexshare.eval.bootstrap import Estimate
from indexshare.eval.forward import Progress
from indexshare.eval.paired import Paired, paired

DEFAULT_LENGTHS = (1024, 2048, 4096, 8192)
_Z95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class LongReport:
    """Scores of one program at one task.

    Attributes:
        task, program: names.
        form: how questions were put.
        lengths: most tokens of prompt and answer.
        scores: by [length][question], 0 to 1; question i is the same for every program that was asked with the same
            counter of tokens. Empty at a length that the program refuses.
        tokens: of the prompts, by [length][question]; None where the program does not say.
        refused: lengths that the program does not read, and why.
    """

    task: str
    program: str
    form: Form
    lengths: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]
    tokens: tuple[tuple[int | None, ...], ...]
    refused: dict[int, str] = field(default_factory=dict)

    def at(self, length: int) -> tuple[float, ...]:
        """Scores at a length; none at one that was refused."""
        return self.scores[self.lengths.index(length)]

    def mean(self, length: int) -> Estimate | None:
        """Mean score at a length with its interval; None where it was refused."""
        return mean_score(self.at(length)) if self.at(length) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        rows: list[dict[str, Any]] = []
        for length, scores, tokens in zip(self.lengths, self.scores, self.tokens, strict=True):
            if length in self.refused:
                rows.append({"length": length, "score": None, "interval": None, "refused": self.refused[length]})
                continue
            found = mean_score(scores)
            rows.append({
                "length": length, "score": found.value, "interval": found.interval, "scores": list(scores),
                "prompt_tokens": list(tokens),
            })  # fmt: skip
        return {"task": self.task, "form": self.form, "lengths": rows}


def mean_score(scores: Sequence[float]) -> Estimate:
    """Mean of scores between 0 and 1 with the Wilson interval, which is wide enough: none varies more than 0 and 1."""
    count, z2 = len(scores), _Z95**2
    part = sum(scores) / count
    centre = (part + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 / (1 + z2 / count) * math.sqrt(max(0.0, part * (1 - part)) / count + z2 / (4 * count**2))
    return Estimate(part, (max(0.0, centre - half), min(1.0, centre + half)))


def by_question(reports: Sequence[LongReport], lengths: Sequence[int]) -> list[float]:
    """Mean score over lengths of each question of each report: a question has the same names at every length.

    The means are independent of each other, the scores at several lengths may not be.
    """
    rows = [[report.at(length) for length in lengths] for report in reports]
    return [sum(column) / len(column) for row in rows for column in zip(*row, strict=True)]


def compare_long(
    first: Sequence[LongReport], second: Sequence[LongReport], lengths: Sequence[int] | None = None
) -> Paired | None:
    """How much better the first program is over tasks and lengths; None where no length was read by both.

    Args:
        first, second: reports of the two on the same tasks, in the same order.
        lengths: to look at; unless given, all that both read in every task.

    Raises:
        ValueError: the reports are not of the same questions.
    """
    for mine, theirs in zip(first, second, strict=True):
        if (mine.task, mine.form, mine.lengths) != (theirs.task, theirs.form, theirs.lengths):
            raise ValueError("the reports are not of the same questions")
    chosen = first[0].lengths if lengths is None else lengths
    read = [n for n in chosen if all(report.at(n) for report in (*first, *second))]
    return paired(by_question(first, read), by_question(second, read)) if read else None


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How questions are put to a program.

    Attributes:
        lengths: tokens of prompt and answer.
        samples: questions at each length.
        seed: question i is a function of the task, the seed, i, the length, the form and the counter of tokens.
        counter: tokens of a prompt for a task; those of the program itself unless given. Programs that are compared
            are given the same one, and so get the same questions.
        answer_tokens: most tokens of an answer; what the task says unless given.
        parallel: questions at a time.
    """

    lengths: Sequence[int]
    samples: int
    seed: int = 0
    counter: Callable[[LongTask], Counter] | None = None
    answer_tokens: int | None = None
    parallel: int = 1

    def __post_init__(self) -> None:
        for name, value in (("samples", self.samples), ("parallel", self.parallel)):
            if value < 1:
                raise ValueError(f"--{name} is {value}; expected at least 1")
        if self.answer_tokens is not None and self.answer_tokens < 1:
            raise ValueError(f"--answer-tokens is {self.answer_tokens}; expected at least 1")

    def items(self, task: LongTask, length: int, form: Form, count: Counter) -> Iterator[tuple[Question, Item]]:
        """The questions of a length.

        Raises:
            ValueError: the length is too short for the task.
        """
        for index in range(self.samples):
            item = fit_item(
                task, seed=self.seed, index=index, length=length, count=count, form=form,
                answer_tokens=self.answer_tokens,
            )  # fmt: skip
            room = self.answer_tokens or task.room(form)
            yield Question(number=index, prompt=item.prompt(form), max_tokens=room), item


def evaluate_long(
    asker: Asker, task: LongTask, asking: Asking, *, log: AnswerLog | None = None, progress: Progress | None = None
) -> LongReport:
    """Put the questions of a task to a program.

    Args:
        asker: whom to ask.
        task: what is asked.
        asking: how much, and how.
        log: answers that are known, and where new ones are kept.
        progress: told (tokens done, tokens in all).

    Raises:
        ValueError: a length is too short for the task, or the program does not answer.
    """
    log = AnswerLog() if log is None else log
    count = (asking.counter or asker.counter)(task)
    total, done = sum(asking.lengths) * asking.samples, 0
    scores, tokens, refused = [], [], dict[int, str]()
    for length in asking.lengths:
        row = dict[int, tuple[float, int | None]]()
        for number, found in _answers(asker, task, asking, length, count, log):
            if isinstance(found, Refused):
                refused[length] = found.reason
                row.clear()
                break
            row[number] = found
            if progress is not None:
                progress(done + len(row) * length, total)
        done += length * asking.samples
        scores.append(tuple(row[number][0] for number in sorted(row)))
        tokens.append(tuple(row[number][1] for number in sorted(row)))
    return LongReport(
        task=task.name, program=asker.name, form=asker.form, lengths=tuple(asking.lengths), scores=tuple(scores),
        tokens=tuple(tokens), refused=refused,
    )  # fmt: skip


def _answers(
    asker: Asker, task: LongTask, asking: Asking, length: int, count: Counter, log: AnswerLog
) -> Iterator[tuple[int, tuple[float, int | None] | Refused]]:
    """Score and prompt tokens of each question by its number, known and new ones; texts are made as they are needed."""
    items, known = dict[int, Item](), list[tuple[int, Answer]]()

    def scored(number: int, answer: Answer) -> tuple[int, tuple[float, int | None]]:
        return number, (score(task, items[number], read_answer(answer.text, asker.form)), answer.prompt_tokens)

    def key(question: Question) -> dict[str, Any]:
        return key_of(asker, question, task=task.name, seed=asking.seed, length=length)

    def missing() -> Iterator[Question]:
        for question, item in asking.items(task, length, asker.form, count):
            items[question.number] = replace(item, context="")  # it may be long, and is in the prompt
            found = log.find(key(question))
            if found is None:
                yield question
            else:
                known.append((question.number, found))

    for question, answer in asker.answers(missing(), asking.parallel):
        if isinstance(answer, Refused):
            yield question.number, answer
            return
        log.add(key(question), answer)
        yield scored(question.number, answer)
        while known:
            yield scored(*known.pop())
    while known:
        yield scored(*known.pop())
