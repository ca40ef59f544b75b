"""Facts in files that no training saw, asked for in forms that training shows and in forms that it never does.

Real held-out code gets fresh facts, each stated in one way and asked for in another (`data/forms`). A question counts
as right when greedy decoding gives the answer exactly; as in `retrieval.py`, one forward pass over a text checks all of
its questions. Every text has as many questions in trained forms as in held-out ones, all of different families.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from indexshare.data.forms import HELD_OUT, TRAINED, AskedText, File, Form, ask_about, is_held_out_family, is_trained
from indexshare.data.splitting import Document, package_of
from indexshare.eval.bootstrap import Estimate, proportion
from indexshare.eval.forward import (
    ATTENTION,
    Progress,
    batches,
    counter,
    distinct_kinds,
    hidden_states,
    predictions,
)
from indexshare.eval.retrieval import chosen_lengths
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer

DEFAULT_LENGTHS = (2048, 4096, 8192)
TRAINED_FORMS, HELD_OUT_FORMS = "trained", "held-out"
SPLITS = (TRAINED_FORMS, HELD_OUT_FORMS)
QUESTIONS_OF_A_SPLIT = 2  # in each text
_BYTES_PER_TOKEN = 6  # of files that are more than enough for a text


@dataclass(frozen=True, kw_only=True)
class Family:
    """Questions of one family: its side (`statement` or `question`), name, split, and how many were asked and right.

    Of a trained family those of trained forms alone count, so that a family's figure does not depend on the other side.
    """

    side: str
    name: str
    split: str
    asked: int
    right: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class FormsReport:
    """Exact answers by attention, split and length.

    Attributes:
        attention: kinds of attention that were tried.
        lengths: of the texts in tokens, questions included.
        texts: at each length.
        asked: questions of a split by length.
        right: by attention, then split, then length.
        families: over all lengths.
        hashes: of the texts, for each length.
    """

    attention: tuple[str, ...]
    lengths: tuple[int, ...]
    texts: int
    asked: dict[str, tuple[int, ...]]
    right: dict[str, dict[str, tuple[int, ...]]]
    families: tuple[Family, ...] = ()
    hashes: tuple[str, ...] = field(default=())

    def accuracy(self, attention: str, split: str, length: int) -> Estimate:
        """Part of exact answers, with its Wilson interval."""
        at = self.lengths.index(length)
        return proportion(self.right[attention][split][at], self.asked[split][at])


def evaluate_forms(
    model: GlmMoeDsa,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    lengths: Sequence[int] | None = None,
    samples: int = 5,
    attention: Sequence[str] = ATTENTION,
    seed: int = 0,
    progress: Progress | None = None,
) -> FormsReport:
    """Ask a model for facts planted in held-out files.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        documents: files that the model was not trained on.
        lengths: in tokens; `DEFAULT_LENGTHS` within the model's context unless given.
        samples: texts at each length.
        attention: kinds of attention to compare.
        seed: of files, facts and forms.
        progress: told (tokens done, tokens in all).

    Raises:
        ValueError: an unknown kind of attention, a length that the model does not have or that is too short for the
            questions, no samples, or no documents.
    """
    if samples < 1 or not documents:
        raise ValueError(f"{samples} samples and {len(documents)} held-out files; expected at least 1 of each")
    attention, lengths = distinct_kinds(model, attention), chosen_lengths(model, lengths, DEFAULT_LENGTHS)
    texts = {
        length: [_text(tokenizer, documents, length, f"{seed}/{length}/{sample}") for sample in range(samples)]
        for length in lengths
    }  # all of them first: a length that is too short is refused at once
    total = len(attention) * sum(len(text.ids) for group in texts.values() for text in group)
    advance = counter(progress, total)
    found = {
        name: [_right_answers(model, group, name, advance) for group in texts.values()] for name in attention
    }  # for each question whether it was right
    return _report(tuple(attention), lengths, list(texts.values()), found, tokenizer)


def _text(tokenizer: Tokenizer, documents: Sequence[Document], length: int, key: str) -> AskedText:
    """One text, of files of one package where that has enough."""
    rng = random.Random(f"evaluation/forms/{key}")
    last = rng.choices(documents, [len(d.text) + 1 for d in documents])[0]
    others = [d for d in documents if d is not last]
    rng.shuffle(others)
    own = package_of(last.name)
    others.sort(key=lambda d: package_of(d.name) != own)  # its package's first: nearest to it
    files, size = [File(last.name, last.text)], len(last.text)
    for document in others:
        if size >= _BYTES_PER_TOKEN * length:
            break
        files.insert(0, File(document.name, document.text))
        size += len(document.text)
    forms = [form for split in (TRAINED, HELD_OUT) for form in _different(rng, split, QUESTIONS_OF_A_SPLIT)]
    return ask_about(files, forms, tokenizer, tokens=length, key=f"evaluation/{key}")


def _different(rng: random.Random, forms: Sequence[Form], count: int) -> list[Form]:
    """Forms of which no two have a statement or a question in common."""
    chosen: list[Form] = []
    while len(chosen) < count:
        form = rng.choice(forms)
        if all(form.statement != other.statement and form.question != other.question for other in chosen):
            chosen.append(form)
    return chosen


def _right_answers(
    model: GlmMoeDsa, texts: Sequence[AskedText], attention: str, advance: Callable[[int], None] | None
) -> list[bool]:
    """Of every question of the texts, in order, whether it is answered exactly."""
    right: list[bool] = []
    for batch in batches([len(text.ids) for text in texts]):
        part = [texts[i] for i in batch]
        hidden, view = hidden_states(model, [text.ids for text in part], attention)
        rows = [
            span.start + place - 1
            for span, text in zip(view.spans, part, strict=True)
            for answer in text.answers
            for place in range(answer.start, answer.stop)
        ]
        said = iter(predictions(model, hidden, rows))
        for text in part:
            for answer in text.answers:
                tokens = [next(said) for _ in range(answer.start, answer.stop)]
                right.append(tokens == text.ids[answer.start : answer.stop])
        if advance is not None:
            advance(sum(len(text.ids) for text in part))
    return right


def _report(
    attention: tuple[str, ...], lengths: Sequence[int], texts: Sequence[Sequence[AskedText]],
    found: dict[str, list[list[bool]]], tokenizer: Tokenizer,
) -> FormsReport:  # fmt: skip
    forms = [[answer.form for text in group for answer in text.answers] for group in texts]

    def count(split: str, marks: Sequence[Sequence[bool]]) -> tuple[int, ...]:
        pairs = [zip(group, row, strict=True) for group, row in zip(forms, marks, strict=True)]
        return tuple(sum(mark and _split(form) == split for form, mark in pair) for pair in pairs)

    every = [[True] * len(group) for group in forms]
    return FormsReport(
        attention=attention,
        lengths=tuple(lengths),
        texts=len(texts[0]),
        asked={split: count(split, every) for split in SPLITS},
        right={name: {split: count(split, found[name]) for split in SPLITS} for name in attention},
        families=_families([form for group in forms for form in group], found),
        hashes=tuple(_hash(tokenizer, group) for group in texts),
    )


def _split(form: Form) -> str:
    return TRAINED_FORMS if is_trained(form) else HELD_OUT_FORMS


def _families(forms: Sequence[Form], found: dict[str, list[list[bool]]]) -> tuple[Family, ...]:
    """Statements, then questions; trained families first, then by name."""
    asked: Counter[tuple[str, str, str]] = Counter()
    right: dict[str, Counter[tuple[str, str, str]]] = {name: Counter() for name in found}
    keys = [_families_of(form) for form in forms]
    for key in keys:
        asked.update(key)
    for name, rows in found.items():
        for key, mark in zip(keys, [mark for row in rows for mark in row], strict=True):
            right[name].update(key if mark else ())
    order = sorted(asked, key=lambda k: (k[0] != "statement", k[2] != TRAINED_FORMS, k[1]))
    return tuple(
        Family(side=key[0], name=key[1], split=key[2], asked=asked[key], right={n: right[n][key] for n in found})
        for key in order
    )


def _families_of(form: Form) -> list[tuple[str, str, str]]:
    """The families that a question counts for: both of a trained form, the held-out ones of a held-out form."""
    pairs = (("statement", form.statement.name), ("question", form.question.name))
    if is_trained(form):
        return [(side, name, TRAINED_FORMS) for side, name in pairs]
    sides = {side: name for side, name in pairs if is_held_out_family(side, name)}
    return [(side, name, HELD_OUT_FORMS) for side, name in sides.items()]


def _hash(tokenizer: Tokenizer, texts: Sequence[AskedText]) -> str:
    """Of the texts with their questions; models with one tokenizer get the same."""
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for text in texts:
        digest.update(repr((text.ids, [(a.form.name, a.start, a.stop) for a in text.answers])).encode())
    return digest.hexdigest()[:16]
