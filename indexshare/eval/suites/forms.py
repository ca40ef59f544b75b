"""The suite `forms`: facts in unseen code, asked for in trained and in held-out forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from indexshare.eval.bootstrap import proportion
from indexshare.eval.forms import DEFAULT_LENGTHS, SPLITS, FormsReport, evaluate_forms
from indexshare.eval.plots import heatmap, lengths_axis, line
from indexshare.eval.subject import Subject
from indexshare.eval.suites.base import Pairs, Panel, Stage, SuiteSettings, Table, figure
from indexshare.eval.suites.by_length import ByLength

_STYLES = {"trained": "-", "held-out": "--"}


class FormsSuite(ByLength[FormsReport]):
    """Exact answers by split and length for each kind of attention, and by family."""

    name = "forms"
    default_lengths = DEFAULT_LENGTHS

    def run(self, subject: Subject, settings: SuiteSettings, stage: Stage) -> FormsReport:
        """Ask for what was planted."""
        with stage(self.name) as progress:
            return evaluate_forms(
                subject.model,
                subject.tokenizer,
                subject.held_out,
                lengths=settings.lengths,
                samples=settings.samples,
                attention=settings.attention,
                seed=settings.seed,
                progress=progress,
            )

    def tables(self, report: FormsReport) -> Sequence[Table | Pairs]:
        """A table of lengths for each split, and one of families under the first kind of attention."""
        first = report.attention[0]
        tables = [
            Table(
                f"forms, {split} forms: exact answers by length ({report.texts} texts each)",
                ("length", *report.attention),
                [
                    [f"{n:,}", *(figure(report.accuracy(name, split, n), ".0%") for name in report.attention)]
                    for n in report.lengths
                ],
            )
            for split in SPLITS
        ]
        rows = [
            [f"{f.side} {f.name}", f.split, f"{f.right[first]}/{f.asked}", *(f"{f.right[first] / f.asked:.0%}",)]
            for f in report.families
        ]
        families = Table(f"forms, {first}: exact answers by family", ("family", "forms", "right", "part"), rows)
        return [*tables, families]

    def facts(self, report: FormsReport) -> dict[str, Any]:
        """Plain values, with the accuracy by attention, split and length."""
        accuracy = {
            name: {
                split: [{"length": n, **asdict(report.accuracy(name, split, n))} for n in report.lengths]
                for split in SPLITS
            }
            for name in report.attention
        }
        families = [
            asdict(f) | {"accuracy": {n: asdict(proportion(f.right[n], f.asked)) for n in report.attention}}
            for f in report.families
        ]
        return {self.name: asdict(report) | {"families": families, "accuracy": accuracy}}

    def pictures(self, report: FormsReport) -> Sequence[Sequence[Panel]]:
        """Exact answers by length for every kind of attention and split; and by length under the first kind."""
        return [[lambda axes: _draw_lines(axes, report), lambda axes: _draw_cells(axes, report)]]


def _draw_lines(axes: Any, report: FormsReport) -> None:
    for number, name in enumerate(report.attention):
        for split in SPLITS:
            every = [report.accuracy(name, split, n) for n in report.lengths]
            line(axes, report.lengths, every, f"{name}, {split}", bars=True, color=f"C{number}", ls=_STYLES[split])
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("exact answers")
    lengths_axis(axes, report.lengths)


def _draw_cells(axes: Any, report: FormsReport) -> None:
    first = report.attention[0]
    values = [[report.accuracy(first, split, n).value for n in report.lengths] for split in SPLITS]
    labels = [
        [f"{report.right[first][split][i]}/{report.asked[split][i]}" for i in range(len(report.lengths))]
        for split in SPLITS
    ]
    heatmap(axes, values, labels, rows=[f"{split} forms" for split in SPLITS], lengths=report.lengths)
    axes.set_title(first, fontsize="medium")
