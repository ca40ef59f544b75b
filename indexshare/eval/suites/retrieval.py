"""The suites `needle` and `recall`: exact answers by length and depth under several kinds of attention.

Their questions have the form of generated training tasks; the suite `forms` asks in others too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from indexshare.eval.paired import paired
from indexshare.eval.retrieval import DEFAULT_LENGTHS, RetrievalReport, evaluate_retrieval
from indexshare.eval.subject import Subject
from indexshare.eval.suites.base import Comparison, Pairs, Panel, Stage, SuiteSettings, Table, figure, points
from indexshare.eval.suites.by_length import ByLength


class RetrievalSuite(ByLength[RetrievalReport]):
    """One task of `eval/retrieval.py`, under its name."""

    needs_text = False
    default_lengths = DEFAULT_LENGTHS

    def __init__(self, task: str) -> None:
        self.name = task

    def run(self, subject: Subject, settings: SuiteSettings, stage: Stage) -> RetrievalReport:
        """Ask for what lies at every depth."""
        with stage(self.name) as progress:
            return evaluate_retrieval(
                subject.model,
                subject.tokenizer,
                self.name,
                lengths=settings.lengths,
                samples=settings.samples,
                attention=settings.attention,
                seed=settings.seed,
                progress=progress,
            )

    def tables(self, report: RetrievalReport) -> Sequence[Table | Pairs]:
        """Exact answers by length for each kind of attention, then by depth for the first kind."""
        by_length = [
            [f"{length:,}", *(figure(report.accuracy(name, length), ".0%") for name in report.attention)]
            for length in report.lengths
        ]
        first = report.attention[0]
        right = report.right[first]
        by_depth = [
            [f"{depth:.0%}", *(f"{right[i][d]}/{report.asked[i][d]}" for i in range(len(report.lengths)))]
            for d, depth in enumerate(report.depths)
        ]
        columns = ("depth", *(f"{length:,}" for length in report.lengths))
        return [
            Table(f"{report.task}: exact answers by length (a trained form)", ("length", *report.attention), by_length),
            Table(f"{report.task}, {first}: exact answers by depth and length", columns, by_depth),
        ]

    def facts(self, report: RetrievalReport) -> dict[str, Any]:
        """Plain values, with the accuracy by attention and length."""
        accuracy = {
            name: [
                {
                    "length": length,
                    **asdict(report.accuracy(name, length)),
                    "worst_depth": report.worst_depth(name, length),
                }
                for length in report.lengths
            ]
            for name in report.attention
        }
        plain = {name: value for name, value in asdict(report).items() if name not in ("by_text", "texts")}
        return {self.name: plain | {"accuracy": accuracy}}

    def pictures(self, report: RetrievalReport) -> Sequence[Sequence[Panel]]:
        """A heatmap of depth by length for each kind of attention."""
        return [[lambda axes, name=name: _draw_answers(axes, report, name) for name in report.attention]]  # type: ignore[misc]

    def compare(self, names: Sequence[str], reports: Sequence[RetrievalReport]) -> Comparison:
        """Exact answers about the same texts, each model against the first one; nothing where the texts differ."""
        tables, facts, first = list[Table](), list[dict[str, Any]](), reports[0]
        for name, report in zip(names[1:], reports[1:], strict=True):
            if (report.texts, report.attention) != (first.texts, first.attention):
                continue
            found = {
                kind: [paired(*rows) for rows in zip(report.by_text[kind], first.by_text[kind], strict=True)]
                for kind in report.attention
            }
            rows = [
                [f"{length:,}", *(points(found[kind][n]) for kind in found)] for n, length in enumerate(report.lengths)
            ]
            title = (
                f"{self.name}: {name} less {names[0]}, points with 95 % intervals of pairs of texts (* leaves out 0)"
            )
            tables.append(Table(title, ("length", *found), rows))
            by_length = [
                {"length": length} | {kind: found[kind][n].to_dict() for kind in found}
                for n, length in enumerate(report.lengths)
            ]
            facts.append({"model": name, "less": names[0], "lengths": by_length})
        return Comparison(tables, facts)


def _draw_answers(axes: Any, report: RetrievalReport, attention: str) -> None:
    right, asked = report.right[attention], report.asked
    part = [[r / a for r, a in zip(*rows, strict=True)] for rows in zip(right, asked, strict=True)]
    columns = [list(depth) for depth in zip(*part, strict=True)]  # depth by length
    image = axes.imshow(columns, aspect="auto", vmin=0, vmax=1, cmap="viridis", origin="upper")
    axes.set_xticks(range(len(report.lengths)), [f"{length:,}" for length in report.lengths], rotation=30)
    axes.set_yticks(range(len(report.depths)), [f"{depth:.0%}" for depth in report.depths])
    axes.set(xlabel="length (tokens)", ylabel="depth", title=f"{report.task}: {attention}")
    axes.figure.colorbar(image, ax=axes, label="exact answers")
