"""The suite `draft`: how often the draft layer says what the trunk says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from indexshare.eval import plots
from indexshare.eval.draft import DEFAULT_TOKENS, DraftReport, check_draft, evaluate_draft
from indexshare.eval.subject import Subject
from indexshare.eval.suites.base import Pairs, Panel, Stage, Suite, SuiteSettings, Table, figure
from indexshare.text.files import plural


class DraftSuite(Suite[DraftReport]):
    """Agreement by step."""

    name = "draft"
    reads = frozenset({"tokens"})

    def check(self, subject: Subject, settings: SuiteSettings) -> None:
        """There is a draft layer, and tokens for it."""
        check_draft(subject.model)
        if settings.tokens is not None and settings.tokens < 1:
            raise ValueError(f"--tokens is {settings.tokens}; expected at least 1")

    def run(self, subject: Subject, settings: SuiteSettings, stage: Stage) -> DraftReport:
        """Trunk and draft layer over the same text."""
        tokens = DEFAULT_TOKENS if settings.tokens is None else settings.tokens
        with stage(self.name) as progress:
            return evaluate_draft(
                subject.model, subject.tokenizer, subject.held_out, max_tokens=tokens, progress=progress
            )

    def tables(self, report: DraftReport) -> Sequence[Table | Pairs]:
        """Agreement of the draft layer with the trunk by step."""
        rows = [
            (f"{step}", figure(this, ".1%"), "-" if chain is None else figure(chain, ".1%"))
            for step, (this, chain) in enumerate(zip(report.agreement, report.accepted, strict=True), 1)
        ]
        title = (
            f"draft layer against trunk, {report.tokens:,} tokens of {plural(report.files, 'file')} "
            f"(the trunk itself is right at {report.trunk_right.value:.1%})"
        )
        return [Table(title, ("step", "agrees", "accepted up to this step"), rows)]

    def pictures(self, report: DraftReport) -> Sequence[Sequence[Panel]]:
        """Bars by step."""
        return [[lambda axes: _draw_agreement(axes, report)]]


def _draw_agreement(axes: Any, report: DraftReport) -> None:
    steps = range(1, len(report.agreement) + 1)
    for shift, name, every in ((-0.2, "this step", report.agreement), (0.2, "accepted up to it", report.accepted)):
        there = [(step + shift, figure) for step, figure in zip(steps, every, strict=True) if figure is not None]
        places, figures = [place for place, _ in there], [figure for _, figure in there]
        values = [figure.value for figure in figures]
        axes.bar(places, values, width=0.38, yerr=plots.error_bars(figures), capsize=3, label=name)
    axes.set_xticks(list(steps), [f"step {step}" for step in steps])
    axes.set(ylim=(0, 1), ylabel="draft agrees with trunk", title=f"draft layer, {report.tokens:,} held-out tokens")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3, axis="y")
