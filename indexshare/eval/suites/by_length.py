"""What suites share that ask texts of several lengths under several kinds of attention."""

from __future__ import annotations

from typing import ClassVar

from indexshare.eval.forward import check_attention, check_length
from indexshare.eval.retrieval import lengths_within
from indexshare.eval.subject import Subject
from indexshare.eval.suites.base import R, Suite, SuiteSettings


class ByLength(Suite[R]):
    """Lengths, kinds of attention and samples are refused or cut before anything runs.

    Attributes:
        default_lengths: in tokens, where none are given.
    """

    default_lengths: ClassVar[tuple[int, ...]]
    reads: ClassVar[frozenset[str]] = frozenset({"lengths", "attention", "samples", "seed"})

    def check(self, subject: Subject, settings: SuiteSettings) -> None:
        """Known kinds of attention, a sample or more, and lengths that the model reads."""
        if settings.samples < 1:
            raise ValueError(f"--samples is {settings.samples}; expected at least 1")
        check_attention(settings.attention)
        for length in settings.lengths or ():
            check_length(subject.model, length)

    def cut_short(self, subject: Subject, settings: SuiteSettings) -> str:
        """The lengths."""
        lengths = lengths_within(subject.model, self.default_lengths)
        if settings.lengths is not None or lengths == self.default_lengths:
            return ""
        return f"texts of {', '.join(f'{n:,}' for n in lengths)} tokens alone; the model's context holds no more"
