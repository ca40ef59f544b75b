"""Suites for the long tasks: questions over generated texts, one suite for each task of the registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from indexshare.data.long_tasks import LongTask, fit_item
from indexshare.eval.forward import check_length
from indexshare.eval.long import DEFAULT_LENGTHS, LongReport, evaluate_long
from indexshare.eval.subject import Subject
from indexshare.eval.suites.base import Pairs, Panel, Stage, Suite, SuiteSettings, Table, figure


class LongSuite(Suite[LongReport]):
    """One task, under its name."""

    reads = frozenset({"lengths", "samples", "seed"})
    needs_text = False

    def __init__(self, task: LongTask) -> None:
        self.name, self._task = task.name, task

    def check(self, subject: Subject, settings: SuiteSettings) -> None:
        """Lengths that the model reads and that the shortest question fits."""
        for length in settings.lengths or ():
            check_length(subject.model, length)
            fit_item(
                self._task,
                seed=settings.seed,
                index=0,
                length=length,
                count=lambda text: len(subject.tokenizer.encode(text)),
            )

    def run(self, subject: Subject, settings: SuiteSettings, stage: Stage) -> LongReport:
        """Ask at every length."""
        context = subject.model.config.max_position_embeddings
        lengths = settings.lengths or tuple(length for length in DEFAULT_LENGTHS if length <= context)
        with stage(self.name) as progress:
            return evaluate_long(
                subject.model, subject.tokenizer, self._task, lengths=lengths, samples=settings.samples,
                seed=settings.seed, progress=progress,
            )  # fmt: skip

    def tables(self, report: LongReport) -> Sequence[Table | Pairs]:
        """Mean score by length."""
        rows = [[f"{length:,}", figure(report.mean(length), ".0%")] for length in report.lengths]
        return [Table(f"{report.task}: {self._task.says}", ("length", "score"), rows)]

    def facts(self, report: LongReport) -> dict[str, Any]:
        """Plain values."""
        return {self.name: report.to_dict()}

    def pictures(self, report: LongReport) -> Sequence[Sequence[Panel]]:
        """Score by length."""
        return [[lambda axes: _draw(axes, report)]]


def _draw(axes: Any, report: LongReport) -> None:
    found = [report.mean(length) for length in report.lengths]
    axes.plot(report.lengths, [estimate.value for estimate in found], marker="o")
    axes.fill_between(report.lengths, *zip(*(estimate.interval for estimate in found), strict=True), alpha=0.2)
    axes.set(xscale="log", ylim=(0, 1), xlabel="length (tokens)", ylabel="score", title=report.task)
    axes.grid(alpha=0.3)
