"""The suite `repository`: what the rest of a file's package saves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from indexshare.eval.forward import check_length
from indexshare.eval.repository import DEFAULT_FILES, RepositoryReport, evaluate_repository
from indexshare.eval.subject import Subject
from indexshare.eval.suites.base import Pairs, Panel, Stage, Suite, SuiteSettings, Table, figure
from indexshare.text.files import plural


class RepositorySuite(Suite[RepositoryReport]):
    """Bits per byte of held-out files alone and behind their package."""

    name = "repository"
    reads = frozenset({"context", "files", "seed"})

    def check(self, subject: Subject, settings: SuiteSettings) -> None:
        """A context that the model reads."""
        if settings.context is not None:
            check_length(subject.model, settings.context)

    def run(self, subject: Subject, settings: SuiteSettings, stage: Stage) -> RepositoryReport:
        """Score each file twice."""
        with stage(self.name) as progress:
            return evaluate_repository(
                subject.model,
                subject.tokenizer,
                subject.held_out,
                subject.everything,
                context=settings.context,
                files=settings.files or DEFAULT_FILES,
                seed=settings.seed,
                progress=progress,
            )

    def tables(self, report: RepositoryReport) -> Sequence[Table | Pairs]:
        """Bits per byte with the package and without."""
        behind = f"behind {report.mean_context_tokens:,.0f} of their package on average"
        return [
            Pairs(
                f"{plural(report.files, 'held-out file')} with the rest of their package in {report.context:,} tokens",
                [
                    ("bits per byte, alone", figure(report.alone, ".4f")),
                    ("  with the package", figure(report.with_package, ".4f")),
                    ("  saved", figure(report.gain, ".1%")),
                    ("tokens scored", f"{report.tokens:,}, {behind}"),
                ],
            )
        ]

    def pictures(self, report: RepositoryReport) -> Sequence[Sequence[Panel]]:
        """The gain of every file."""
        return [[lambda axes: _draw_gains(axes, report)]]


def _draw_gains(axes: Any, report: RepositoryReport) -> None:
    gains = sorted(100 * (1 - row.with_package / row.alone) for row in report.by_file)
    axes.bar(range(len(gains)), gains, color=["tab:green" if gain > 0 else "tab:red" for gain in gains])
    gain = report.gain
    axes.axhline(100 * gain.value, color="black", linewidth=1)
    if gain.interval is not None:
        axes.axhspan(100 * gain.interval[0], 100 * gain.interval[1], color="grey", alpha=0.3)
    title = f"with the package in {report.context:,} tokens: {gain.value:.1%} saved"
    axes.set(xlabel="held-out files, sorted", xticks=[], ylabel="bits saved (%)", title=title)
    axes.grid(alpha=0.3, axis="y")
