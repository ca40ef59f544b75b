"""What an evaluation suite is: one object that says what to check, what to run, and how to show what came out.

A new suite is a subclass of `Suite` and a call of `registry.register`; the command `indexshare eval` needs no change.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from indexshare.eval.bootstrap import Estimate, Interval
from indexshare.eval.draft_rounds import DEFAULT_DRAFTS, DEFAULT_TEMPERATURES
from indexshare.eval.forward import ATTENTION, Progress
from indexshare.eval.paired import Paired
from indexshare.eval.subject import Subject

Panel = Callable[[Any], None]  # draws on matplotlib axes
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class SuiteSettings:
    """How much is measured. A suite names in `Suite.reads` which of these it reads; None leaves the choice to it.

    Attributes:
        lengths: context lengths in tokens.
        ancestor: a model whose layers are all Full, trained on the same text.
        attention: kinds of attention to compare.
        samples: questions at each length and depth.
        tokens: most held-out tokens to score.
        files: most files to score.
        context: tokens of context for a file of a repository.
        seed: of generated texts and of the choice of files.
        max_tokens: longest stretch of a file that is scored in one piece.
        form: how long questions are put: `base` or `chat`.
        answers: file in which answers to long questions are kept, and from which they are taken.
        answer_tokens: most tokens of such an answer.
        parallel: long questions at a time.
        temperatures: at which drafts are verified.
        drafts: tokens guessed in a round.
    """

    lengths: tuple[int, ...] | None = None
    ancestor: str | None = None
    attention: tuple[str, ...] = ATTENTION
    samples: int = 5
    tokens: int | None = None
    files: int | None = None
    context: int | None = None
    seed: int = 0
    max_tokens: int | None = None
    form: str = "base"
    answers: Path | None = None
    answer_tokens: int | None = None
    parallel: int = 1
    temperatures: tuple[float, ...] = DEFAULT_TEMPERATURES
    drafts: int = DEFAULT_DRAFTS


class Stage(Protocol):
    """Begins a measurement that takes a while: `with stage("needle") as progress: ...`."""

    def __call__(self, name: str, unit: str = "tokens") -> AbstractContextManager[Progress]: ...


@dataclass(frozen=True)
class Table:
    """Rows under column names; the first column is text, the others are figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Pairs:
    """Names with their values."""

    title: str
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Comparison:
    """Several reports of a suite side by side; empty where the suite compares nothing.

    Attributes:
        tables: for people.
        facts: a plain object for every model but the first.
        pictures: rows of panels, in the place of those of each report.
    """

    tables: Sequence[Table | Pairs] = ()
    facts: Sequence[dict[str, Any]] = ()
    pictures: Sequence[Sequence[Panel]] = ()


class Suite(ABC, Generic[R]):
    """One kind of measurement with a report `R` of its own.

    Attributes:
        name: what `--suite` calls it.
        reads: the fields of `SuiteSettings` that it reads.
        needs_text: whether it scores held-out files; without any such suite none are read.
        group: another name for it and others; empty for none.
    """

    name: str
    reads: ClassVar[frozenset[str]] = frozenset()
    needs_text: ClassVar[bool] = True
    group: ClassVar[str] = ""

    def check(self, subject: Subject, settings: SuiteSettings) -> None:
        """Refuse (ValueError) what the run would refuse; called before any suite runs."""
        return None

    def cut_short(self, subject: Subject, settings: SuiteSettings) -> str:
        """What the suite does less of than by default, because the model's context is short; empty for nothing."""
        return ""

    @abstractmethod
    def run(self, subject: Subject, settings: SuiteSettings, stage: Stage) -> R:
        """Measure, every long part inside a `stage`."""

    @abstractmethod
    def tables(self, report: R) -> Sequence[Table | Pairs]:
        """The report for people."""

    def facts(self, report: R) -> dict[str, Any]:
        """The keys that the report adds to the JSON object; the fields of a dataclass under the suite's name."""
        assert not isinstance(report, type)
        return {self.name: asdict(report)}  # type: ignore[call-overload]

    def pictures(self, report: R) -> Sequence[Sequence[Panel]]:
        """Rows of panels, each from left to right; none where there is nothing to draw."""
        return ()

    def compare(self, names: Sequence[str], reports: Sequence[R]) -> Comparison:
        """Reports of several models, the others against the first; by default nothing beyond the reports themselves."""
        return Comparison()


def between(interval: Interval | None, form: str, *, opening: str = " (", closing: str = ")") -> str:
    """The interval as people read it, ` (1.19 to 1.23)`; empty where there is none."""
    return "" if interval is None else f"{opening}{interval[0]:{form}} to {interval[1]:{form}}{closing}"


def figure(estimate: Estimate, form: str) -> str:
    """A figure with its interval: `1.21 (1.19 to 1.23)`."""
    return f"{estimate.value:{form}}{between(estimate.interval, form)}"


def points(found: Paired | None) -> str:
    """A difference of scores in points of a hundred, `+12 (3 to 21)*` where the interval leaves out 0."""
    if found is None:
        return "-"
    shown = found.difference.changed(100, 0)
    return f"{shown.value:+.0f}{between(shown.interval, '.0f')}{'*' if found.sure else ''}"
