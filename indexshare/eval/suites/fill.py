"""The suite `fill`: gaps in held-out files, filled with and without the text after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from indexshare.eval.bootstrap import Estimate
from indexshare.eval.fill import DEFAULT_FILES, KINDS, FillReport, evaluate_fill
from indexshare.eval.forward import check_length
from indexshare.eval.plots import error_bars
from indexshare.eval.subject import Subject
from indexshare.eval.suites.base import Pairs, Panel, Stage, Suite, SuiteSettings, Table, figure
from indexshare.text.files import plural

_LEAST_CONTEXT = 64
_NAMES = {"line": "one line", "lines": "2 to 5 lines"}


class FillSuite(Suite[FillReport]):
    """Exact matches and bits per character of single lines and of several."""

    name = "fill"
    reads = frozenset({"context", "files", "seed"})

    def check(self, subject: Subject, settings: SuiteSettings) -> None:
        """A context that the model reads, and that holds a gap with what is around it."""
        if settings.context is not None:
            check_length(subject.model, settings.context)
            if settings.context < _LEAST_CONTEXT:
                raise ValueError(f"--context is {settings.context}; gaps need at least {_LEAST_CONTEXT}")

    def run(self, subject: Subject, settings: SuiteSettings, stage: Stage) -> FillReport:
        """Fill one gap of each kind in every file."""
        with stage(self.name, "gaps") as progress:
            return evaluate_fill(
                subject.model,
                subject.tokenizer,
                subject.held_out,
                subject.everything,
                context=settings.context,
                files=settings.files or DEFAULT_FILES,
                seed=settings.seed,
                progress=progress,
            )

    def tables(self, report: FillReport) -> Sequence[Table | Pairs]:
        """A row for each kind: exact matches and bits per character with the text after the gap and without."""
        where = "packages never seen" if report.unseen else "held-out files"
        files = plural(len({case.file for case in report.cases}), "file")
        title = f"fill: gaps in {files} of {where}, {report.context:,} tokens of context"
        title += "" if report.learned else " (the model has not learned to use the text after a gap)"
        columns = ("gap", "exact with text after", "without", "bits/char with", "without", "saved")
        rows = [
            [
                _NAMES[kind],
                _shown(report.exact(kind, suffix=True), ".0%"),
                _shown(report.exact(kind, suffix=False), ".0%"),
                _shown(report.bits(kind, suffix=True), ".3f"),
                _shown(report.bits(kind, suffix=False), ".3f"),
                _shown(report.saved(kind), ".1%"),
            ]
            for kind in KINDS
        ]
        return [Table(title, columns, rows)]

    def facts(self, report: FillReport) -> dict[str, Any]:
        """Plain values, with the figures by kind."""
        figures = {
            kind: {
                "exact": _plain(report.exact(kind, suffix=True)),
                "exact_without_suffix": _plain(report.exact(kind, suffix=False)),
                "bits_per_character": _plain(report.bits(kind, suffix=True)),
                "bits_per_character_without_suffix": _plain(report.bits(kind, suffix=False)),
                "saved": _plain(report.saved(kind)),
            }
            for kind in KINDS
        }
        return {self.name: asdict(report) | {"figures": figures}}

    def pictures(self, report: FillReport) -> Sequence[Sequence[Panel]]:
        """Bars of exact matches and of bits per character."""
        return [[lambda axes: _bars(axes, report, "exact"), lambda axes: _bars(axes, report, "bits")]]


def _shown(found: Estimate | None, form: str) -> str:
    return "-" if found is None else figure(found, form)


def _plain(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _bars(axes: Any, report: FillReport, what: str) -> None:
    for number, suffix in enumerate((True, False)):
        pairs = [(at, getattr(report, what)(kind, suffix=suffix)) for at, kind in enumerate(KINDS)]
        there = [(at, found) for at, found in pairs if found is not None]
        if there:
            figures = [found for _, found in there]
            label = "with the text after" if suffix else "without"
            axes.bar([at + 0.4 * number for at, _ in there], [f.value for f in figures], 0.38,
                     yerr=error_bars(figures), capsize=3, label=label)  # fmt: skip
    axes.set_xticks([at + 0.2 for at in range(len(KINDS))], [_NAMES[kind] for kind in KINDS])
    axes.set_ylabel("exact matches" if what == "exact" else "bits per character")
    axes.legend(frameon=False)
