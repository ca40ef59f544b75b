"""Texts that state facts and ask for them later, in tokens: files of a package, then files with the questions."""

from __future__ import annotations

import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from indexshare.data.forms.families import Form
from indexshare.data.forms.planting import Fact, Planter
from indexshare.data.forms.questions import FILES, Host, Question
from indexshare.text.tokenizer import Tokenizer, file_header

_MOST_CHARACTERS_PER_TOKEN = 6
_TRIES = 12
_LEAST_CHARACTERS = 200  # of the files together


@dataclass(frozen=True)
class File:
    """A real file, or a stretch of one."""

    name: str
    text: str


@dataclass(frozen=True)
class Answer:
    """`ids[start:stop]` of a text is what `form` asks for."""

    form: Form
    start: int
    stop: int


@dataclass(frozen=True)
class AskedText:
    """A text with its questions."""

    ids: list[int]
    answers: list[Answer]


def ask_about(
    files: Sequence[File], forms: Sequence[Form], tokenizer: Tokenizer, *, tokens: int, key: str
) -> AskedText:
    """Files with one fact for each form planted in them, and behind them the questions, in files of their kinds.

    Args:
        files: of one package, the last one nearest to the questions; their ends are cut off where they are too much.
        forms: what to state and to ask.
        tokenizer: of the ids.
        tokens: most of them; what was cut is made to fill them nearly.
        key: decides about everything random.

    Raises:
        ValueError: the questions and a few lines to plant facts in do not fit.
    """
    shown = _MOST_CHARACTERS_PER_TOKEN * tokens
    text = None
    for _ in range(_TRIES):
        text = _attempt(cut(files, shown), forms, tokenizer, random.Random(key))
        if len(text.ids) <= tokens:
            return text
        whole = min(shown, sum(len(file.text) for file in files))
        questions = text.answers[0].start if text.answers else len(text.ids)
        spare = max(1, tokens - (len(text.ids) - questions))
        shown = int(whole * min(0.97, spare / questions))
        if shown < _LEAST_CHARACTERS:
            break
    assert text is not None
    raise ValueError(
        f"{tokens} tokens are too few for a text with {len(forms)} questions, which alone take "
        f"{len(text.ids) - (text.answers[0].start if text.answers else 0)}; give a longer length"
    )


def cut(files: Sequence[File], characters: int) -> list[File]:
    """The last files, so many characters of them; of the first one that is left, its beginning up to a line's end."""
    kept: list[File] = []
    for file in reversed(files):
        text = file.text
        if len(text) > characters:
            text = text[: text.rfind("\n", 0, characters) + 1]
        if text:
            kept.append(File(file.name, text))
        characters -= len(file.text)
        if characters <= 0:
            break
    return kept[::-1] or [File(files[-1].name, "")]


def _attempt(files: Sequence[File], forms: Sequence[Form], tokenizer: Tokenizer, rng: random.Random) -> AskedText:
    planter = Planter([file.name for file in files], [file.text for file in files], rng)
    facts = [planter.plant(form.statement) for form in forms]
    texts = [file_header(file.name) + text for file, text in zip(files, planter.texts, strict=True)]
    ids: list[int] = []
    for row in tokenizer.encode_batch(texts, parse_special=False):
        ids += [*row, tokenizer.end_id]
    answers: list[Answer] = []
    package = files[-1].name.rsplit("/", 1)[0] + "/" if "/" in files[-1].name else ""
    for host, members in _by_host(forms, rng):
        word, other = rng.sample(planter.words, 2)
        header = file_header(package + FILES[host].format(word=word, other=other))
        ids += tokenizer.encode(header, parse_special=False)
        for at in members:
            piece, start, stop = _question(tokenizer, rng, planter.words, forms[at].question, facts[at])
            answers.append(Answer(forms[at], len(ids) + start, len(ids) + stop))
            ids += piece
        ids.append(tokenizer.end_id)
    return AskedText(ids, answers)


def _by_host(forms: Sequence[Form], rng: random.Random) -> Iterable[tuple[Host, list[int]]]:
    """Questions by the kind of file that they stand in, files and questions in random order."""
    groups: dict[Host, list[int]] = {}
    for at in rng.sample(range(len(forms)), len(forms)):
        groups.setdefault(forms[at].question.host, []).append(at)
    return groups.items()


def _question(
    tokenizer: Tokenizer, rng: random.Random, words: Sequence[str], question: Question, fact: Fact
) -> tuple[list[int], int, int]:
    """Token ids of a question with its answer, on lines of its own, and the range of the answer.

    A token that joins the answer's beginning with what stands before it belongs to the answer; one that joins its end
    with what comes after it does so if a letter or a digit of the answer is in it.
    """
    before, after = phrase(question, fact, rng, words)
    answer = fact.value.asked(question.spelling)
    ids = tokenizer.encode(f"{before}{answer}{after}\n", parse_special=False)
    first, last = len(before.encode()), len(f"{before}{answer}".encode())
    ends = list(accumulate(len(tokenizer.token_bytes(token)) for token in ids))
    start, stop = bisect_right(ends, first), bisect_left(ends, last) + 1
    inside = f"{before}{answer}".encode()[ends[stop - 2] :] if stop > start + 1 and ends[stop - 1] > last else b"x"
    return ids, start, stop if re.search(rb"\w", inside) else stop - 1


def phrase(question: Question, fact: Fact, rng: random.Random, words: Sequence[str]) -> tuple[str, str]:
    """What stands before the answer, and after it."""
    named = {"name": fact.name, "owner": fact.owner or fact.module, "module": fact.module}
    ref = rng.choice(fact.statement.refs).format(**named)
    said = rng.choice(fact.statement.said).format(**named)
    template = rng.choice(question.templates)
    more = {"NAME": fact.name.upper(), "path": fact.dotted, "symbol": fact.owner or fact.name, "v": "\0"}
    text = template.format(ref=ref, said=said, word=rng.choice(words), **(named | more))
    before, _, after = text.partition("\0")
    return before, after
