"""Answers in a file of JSON lines, one a line, written as they come: the same command goes on where it stopped.

A line names everything that decides the question and the answer: version of the questions, task, seed, length, index,
form, room for the answer, a hash of the prompt, and the program with its identity. What differs in any of them is
another answer, so a file may hold those of many programs and seeds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from indexshare.checkpoint.lock import file_lock
from indexshare.data.long_tasks import VERSION
from indexshare.eval.asking import Answer, Asker, Question
from indexshare.text.files import check_can_write, plural

_KEY = ("version", "task", "seed", "length", "index", "form", "max_tokens", "prompt", "program", "identity")
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}  # line ends to some readers of lines
Key = dict[str, Any]


def key_of(asker: Asker, question: Question, *, task: str, seed: int, length: int) -> Key:
    """What decides a question and its answer."""
    return {
        "version": VERSION, "task": task, "seed": seed, "length": length, "index": question.number, "form": asker.form,
        "max_tokens": question.max_tokens, "prompt": hashlib.sha256(question.prompt.encode()).hexdigest()[:16],
        "program": asker.name, "identity": asker.identity,
    }  # fmt: skip


class AnswerLog:
    """Answers by key, in memory; with a file also in it. `open_answers` makes one with a file."""

    def __init__(self, file: IO[bytes] | None = None, entries: Sequence[Mapping[str, Any]] = ()) -> None:
        self._file = file
        self._answers = {_plain(entry): Answer(entry["answer"], entry["prompt_tokens"]) for entry in entries}

    def find(self, key: Key) -> Answer | None:
        """An answer that is known."""
        return self._answers.get(_plain(key))

    def add(self, key: Key, answer: Answer) -> None:
        """Keep an answer; it is in the file when this returns."""
        self._answers[_plain(key)] = answer
        if self._file is not None:
            line = json.dumps(key | {"answer": answer.text, "prompt_tokens": answer.prompt_tokens}, ensure_ascii=False)
            # A lone surrogate, which a server may send, is no UTF-8
            self._file.write((line.translate(_LINE_ENDS) + "\n").encode("utf-8", errors="backslashreplace"))
            self._file.flush()


@contextmanager
def open_answers(path: Path | None) -> Iterator[AnswerLog]:
    """The answers of a file, which nobody else writes meanwhile; without a path, of this run alone.

    Raises:
        ValueError: the file cannot be written, or has a line that is no answer.
    """
    if path is None:
        yield AnswerLog()
        return
    check_can_write(path)
    with file_lock(path):
        entries, whole = read_answers(path)
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(whole)  # what a kill left of a line
            file.seek(0, os.SEEK_END)
            yield AnswerLog(file, entries)


def read_answers(path: Path) -> tuple[list[Mapping[str, Any]], int]:
    """The lines of a file of answers, none if there is no file, and how many bytes the whole ones take.

    Raises:
        ValueError: a line is no answer.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content[: content.rfind(b"\n") + 1]
    entries = []
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            entry = json.loads(line)
            fits = set(entry) == {*_KEY, "answer", "prompt_tokens"} and isinstance(entry["answer"], str)
        except (ValueError, TypeError, RecursionError):
            fits = False
        if not fits:
            raise ValueError(f"{path}, line {number}: not an answer to long questions; give another --answers")
        entries.append(entry)
    return entries, len(whole)


def describe_answers(path: Path, askers: Sequence[Asker], seed: int) -> str:
    """What a file holds already: answers of these programs, and others, which stay as they are; empty for none."""
    entries, _ = read_answers(path)
    known = {(asker.name, asker.identity, asker.form) for asker in askers}
    names = {asker.name for asker in askers}
    kinds = Counter[str]()
    for entry in entries:
        if (entry["program"], entry["identity"], entry["form"]) in known:
            same = entry["seed"] == seed
            kinds["own" if same else f"with seed {entry['seed']}"] += 1
        elif entry["program"] in names and entry["form"] in {asker.form for asker in askers}:
            kinds[f"of {entry['program']} with other weights or settings"] += 1
        else:
            kinds["of other programs or in the other form"] += 1
    own = kinds.pop("own", 0)
    if not entries:
        return ""
    others = "".join(f"; {number:,} {kind}, kept apart" for kind, number in kinds.most_common())
    return f"{path} holds {plural(own, 'answer')} of these programs with seed {seed}, which are not asked again{others}"


def _plain(key: Mapping[str, Any]) -> str:
    return json.dumps([key[name] for name in _KEY])
