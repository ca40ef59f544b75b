"""Retrieval by length and depth: needles in filler code, and recall from a long table.

A question counts as right when greedy decoding gives the answer exactly. That needs no decoding: greedy decoding writes
the answer if and only if, with the answer in place, each of its tokens is the most likely one after those before it. So
one forward pass over a text checks all of its questions. Questions of one text stand one after the other at its end, as
in training; the answers before a question are the true ones and belong to other keys.

The texts have the form of `train/tasks.py`. Their seeds cannot be those of training, which are two integers.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from indexshare.data.tasks import filler, unique_names
from indexshare.eval.bootstrap import Estimate, proportion
from indexshare.eval.forward import (
    ATTENTION,
    Progress,
    batches,
    check_length,
    counter,
    distinct_kinds,
    hidden_states,
    predictions,
)
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer

DEFAULT_LENGTHS = (1024, 2048, 4096, 8192)
NEEDLES_PER_TEXT = 5  # training has 2 to 6
_MOST_CHARACTERS_PER_TOKEN = 6  # of filler; what is made too much is cut off


@dataclass(frozen=True)
class Question:
    """`ids[start:stop]` of a text is the answer; `depth` is the index of the depth at which it lies."""

    depth: int
    start: int
    stop: int


@dataclass(frozen=True)
class Probe:
    """A text with its questions."""

    ids: list[int]
    questions: list[Question]


ProbeMaker = Callable[[Tokenizer, random.Random, int, Sequence[float]], list[Probe]]


@dataclass(frozen=True, kw_only=True)
class RetrievalReport:
    """Right answers of one task.

    Attributes:
        task: `needle` or `recall`.
        attention: kinds of attention that were tried (`eval/forward.py`).
        lengths: of the texts in tokens, questions included.
        depths: where the answers lie: 0 at the beginning of the text, 1 right before the questions. Each is the
            middle of a range; the ranges cover the text.
        asked: questions by [length][depth].
        right: exact answers by attention, then [length][depth].
        by_text: part of exact answers by attention, then [length][text]; several questions share a text.
        texts: a hash of the texts, for each length.
    """

    task: str
    attention: tuple[str, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    asked: tuple[tuple[int, ...], ...]
    right: dict[str, tuple[tuple[int, ...], ...]]
    by_text: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()

    def accuracy(self, attention: str, length: int) -> Estimate:
        """Part of exact answers at a length over all depths, with its Wilson interval."""
        row = self.lengths.index(length)
        return proportion(sum(self.right[attention][row]), sum(self.asked[row]))

    def worst_depth(self, attention: str, length: int) -> float:
        """Part of exact answers at the worst depth of a length."""
        row = self.lengths.index(length)
        return min(r / a for r, a in zip(self.right[attention][row], self.asked[row], strict=True))


def lengths_within(model: GlmMoeDsa, lengths: Sequence[int]) -> tuple[int, ...]:
    """Those of `lengths` within the model's context; the context itself where that is shorter than all."""
    context = model.config.max_position_embeddings
    return tuple(length for length in lengths if length <= context) or (context,)


def chosen_lengths(model: GlmMoeDsa, lengths: Sequence[int] | None, defaults: Sequence[int]) -> tuple[int, ...]:
    """Each length once, rising; `defaults` within the context for None; ValueError for one the model cannot read."""
    chosen = lengths_within(model, defaults) if lengths is None else tuple(sorted(set(lengths)))
    for length in chosen:
        check_length(model, length)
    return chosen


def evaluate_retrieval(
    model: GlmMoeDsa,
    tokenizer: Tokenizer,
    task: str,
    *,
    lengths: Sequence[int] | None = None,
    depths: int = 10,
    samples: int = 5,
    attention: Sequence[str] = ATTENTION,
    seed: int = 0,
    progress: Progress | None = None,
) -> RetrievalReport:
    """Ask a model for what lies at given depths of texts of given lengths.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        task: `needle` (constants in filler code) or `recall` (entries of a table of settings).
        lengths: in tokens; `DEFAULT_LENGTHS` within the model's context unless given.
        depths: ranges of depth; every text is cut in so many.
        samples: questions per length and depth.
        attention: kinds of attention to compare.
        seed: of the texts.
        progress: told (tokens done, tokens in all).

    Raises:
        ValueError: an unknown task or kind of attention, a length that the model does not have or that is too short
            for the questions, or no depths or samples.
    """
    if task not in _TASKS:
        raise ValueError(f"task is {task!r}; expected one of {', '.join(_TASKS)}")
    if depths < 1 or samples < 1:
        raise ValueError(f"{depths} depths and {samples} samples; expected at least 1 of each")
    attention, lengths = distinct_kinds(model, attention), chosen_lengths(model, lengths, DEFAULT_LENGTHS)
    middles = tuple((i + 0.5) / depths for i in range(depths))
    probes = {
        length: _probes(task, tokenizer, length, middles, samples=samples, seed=seed) for length in lengths
    }  # all of them before the first forward pass: a length that is too short is refused at once
    total = len(attention) * sum(len(probe.ids) for group in probes.values() for probe in group)
    advance = counter(progress, total)
    right: dict[str, list[tuple[int, ...]]] = {name: [] for name in attention}
    by_text: dict[str, list[tuple[float, ...]]] = {name: [] for name in attention}
    for group in probes.values():
        for name in attention:
            by_depth, parts = _right_answers(model, group, name, depths, advance)
            right[name].append(tuple(by_depth))
            by_text[name].append(tuple(parts))
    return RetrievalReport(
        task=task,
        attention=tuple(attention),
        lengths=lengths,
        depths=middles,
        asked=tuple(tuple(_count(group, depths)) for group in probes.values()),
        right={name: tuple(rows) for name, rows in right.items()},
        by_text={name: tuple(rows) for name, rows in by_text.items()},
        texts=tuple(_hash(tokenizer, group) for group in probes.values()),
    )


def _probes(
    task: str, tokenizer: Tokenizer, length: int, depths: Sequence[float], *, samples: int, seed: int
) -> list[Probe]:
    make = _TASKS[task]
    found: list[Probe] = []
    for sample in range(samples):
        rng = random.Random(f"evaluation/{task}/{seed}/{length}/{sample}")
        found += make(tokenizer, rng, length, depths)
    return found


def _count(probes: Sequence[Probe], depths: int) -> list[int]:
    return np.bincount([q.depth for probe in probes for q in probe.questions], minlength=depths).tolist()


def _right_answers(
    model: GlmMoeDsa, probes: Sequence[Probe], attention: str, depths: int, advance: Callable[[int], None] | None
) -> tuple[list[int], list[float]]:
    """Questions answered exactly, by depth, and the part of them by text."""
    right, parts = [0] * depths, list[float]()
    for batch in batches([len(probe.ids) for probe in probes]):
        part = [probes[i] for i in batch]
        hidden, view = hidden_states(model, [probe.ids for probe in part], attention)
        asked = [(span.start, q, p.ids) for span, p in zip(view.spans, part, strict=True) for q in p.questions]
        found: dict[int, int] = {}  # exact answers of each text
        said = iter(predictions(model, hidden, [s + i - 1 for s, q, _ in asked for i in range(q.start, q.stop)]))
        for _, question, ids in asked:
            answer = [next(said) for _ in range(question.start, question.stop)]
            exact = answer == ids[question.start : question.stop]
            right[question.depth] += exact
            found[id(ids)] = found.get(id(ids), 0) + exact
        parts += [found.get(id(probe.ids), 0) / len(probe.questions) for probe in part]
        if advance is not None:
            advance(sum(len(probe.ids) for probe in part))
    return right, parts


def _hash(tokenizer: Tokenizer, probes: Sequence[Probe]) -> str:
    """Of the texts with their questions; models with one tokenizer get the same."""
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for probe in probes:
        digest.update(repr((probe.ids, probe.questions)).encode())
    return digest.hexdigest()[:16]


def _question(tokenizer: Tokenizer, before: str, answer: str) -> tuple[list[int], int, int]:
    """Ids of `before + answer + line break`, and the range of the answer's tokens in them.

    Where the vocabulary joins the end of `before` with the beginning of the answer, the joint token belongs to the
    answer.
    """
    plain, whole = tokenizer.encode_batch([before, before + answer], parse_special=False)
    start = next((i for i, (a, b) in enumerate(zip(plain, whole, strict=False)) if a != b), min(len(plain), len(whole)))
    return [*whole, *tokenizer.encode("\n", parse_special=False)], start, len(whole)


def _ask(tokenizer: Tokenizer, ids: list[int], asked: Sequence[tuple[str, str, int]]) -> Probe:
    """A text with questions (before, answer, depth) behind it."""
    ids, questions = list(ids), []
    for before, answer, depth in asked:
        piece, start, stop = _question(tokenizer, before, answer)
        questions.append(Question(depth, len(ids) + start, len(ids) + stop))
        ids += piece
    return Probe(ids, questions)


def needle_probes(tokenizer: Tokenizer, rng: random.Random, length: int, depths: Sequence[float]) -> list[Probe]:
    """Texts of about `length` tokens (never more) with one needle at each depth, a few needles to a text.

    Raises:
        ValueError: no room for the needles and their questions.
    """
    texts = -(-len(depths) // NEEDLES_PER_TEXT)
    return [_needles(tokenizer, rng, length, depths, range(first, len(depths), texts)) for first in range(texts)]


def _needles(
    tokenizer: Tokenizer, rng: random.Random, length: int, depths: Sequence[float], chosen: Sequence[int]
) -> Probe:
    """One text with needles at the chosen depths."""
    names = [name.upper() for name in unique_names(rng, len(chosen))]
    values = [str(rng.randrange(10_000, 100_000)) for _ in names]
    needles = tokenizer.encode_batch([f"{n} = {v}\n" for n, v in zip(names, values, strict=True)], parse_special=False)
    asked = [(f"assert {names[i]} == ", values[i], chosen[i]) for i in rng.sample(range(len(names)), len(names))]
    questions = sum(len(_question(tokenizer, before, answer)[0]) for before, answer, _ in asked)
    room = length - questions - sum(map(len, needles))
    if room < questions:
        raise ValueError(
            f"a length is {length} tokens; {len(names)} needles and their questions need at least "
            f"{length - room + questions}; give a longer one"
        )
    # Statements are encoded one by one: a line break and the indentation after it are one token.
    code = filler(rng, _MOST_CHARACTERS_PER_TOKEN * room)
    statements = tokenizer.encode_batch(re.split(r"(?<=\n)(?=\S)", code), parse_special=False)
    ends = np.cumsum([len(statement) for statement in statements])
    pieces = statements[: int(np.searchsorted(ends, room, side="right"))]
    for needle, depth in reversed(list(zip(needles, chosen, strict=True))):  # from the last, so that places hold
        pieces.insert(int(np.searchsorted(ends, depths[depth] * room)), needle)
    return _ask(tokenizer, [token for piece in pieces for token in piece], asked)


def recall_probes(tokenizer: Tokenizer, rng: random.Random, length: int, depths: Sequence[float]) -> list[Probe]:
    """One text of about `length` tokens (never more): a table of settings, and a question for each depth of it.

    Raises:
        ValueError: no room for a table with so many entries.
    """
    count = len(depths)
    names = unique_names(rng, max(2 * count, length // 6))  # an entry takes more than six tokens
    pairs = [(name, str(rng.randrange(1000, 10_000))) for name in names]
    lines = [f"\n    '{key}': {value}," for key, value in pairs]  # a line break joins the indentation after it
    sizes = np.cumsum([len(ids) for ids in tokenizer.encode_batch(lines, parse_special=False)])
    question = len(_question(tokenizer, f"assert settings['{max(names, key=len)}'] == ", "1000")[0])
    room = length - count * (question + 2)  # the longest name need not have the most tokens
    entries = int(np.searchsorted(sizes, room, side="right"))
    while entries > 0 and len(table := _table(tokenizer, lines[:entries])) > room:
        entries -= 1
    if entries < 2 * count:
        least = length - room + int(sizes[2 * count - 1]) + 8
        raise ValueError(f"a length is {length} tokens; {count} questions about a table need about {least} or more")
    asked = []
    for depth in range(len(depths)):
        key, value = pairs[rng.randrange(entries * depth // count, entries * (depth + 1) // count)]
        asked.append((f"assert settings['{key}'] == ", value, depth))
    rng.shuffle(asked)
    return [_ask(tokenizer, table, asked)]


def _table(tokenizer: Tokenizer, lines: Sequence[str]) -> list[int]:
    return tokenizer.encode("settings = {" + "".join(lines) + "\n}\n\n", parse_special=False)


_TASKS: dict[str, ProbeMaker] = {"needle": needle_probes, "recall": recall_probes}
