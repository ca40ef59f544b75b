"""The suite `draft`: how often the draft layer says what the trunk says, and what rounds of drafts are good for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from indexshare.eval import plots
from indexshare.eval.bootstrap import Estimate
from indexshare.eval.draft import DEFAULT_TOKENS, DraftReport, check_draft, evaluate_draft
from indexshare.eval.draft_rounds import ALL, DEFAULT_FILES, Rounds, check_rounds, evaluate_rounds
from indexshare.eval.subject import Subject
from indexshare.eval.suites.base import Pairs, Panel, Stage, Suite, SuiteSettings, Table, figure
from indexshare.text.files import plural


@dataclass(frozen=True, kw_only=True)
class Drafts(DraftReport):
    """Agreement along the text, and the rounds of drafts when the model writes."""

    rounds: tuple[Rounds, ...]


class DraftSuite(Suite[Drafts]):
    """Agreement by step; rounds by drafter, temperature and kind of text."""

    name = "draft"
    reads = frozenset({"tokens", "files", "context", "temperatures", "drafts"})

    def check(self, subject: Subject, settings: SuiteSettings) -> None:
        """There is a draft layer, and tokens for it."""
        check_draft(subject.model)
        if settings.tokens is not None and settings.tokens < 1:
            raise ValueError(f"--tokens is {settings.tokens}; expected at least 1")
        check_rounds(subject.model, **_amount(settings))

    def run(self, subject: Subject, settings: SuiteSettings, stage: Stage) -> Drafts:
        """Trunk and draft layer over the same text, then rounds that continue its files."""
        tokens = DEFAULT_TOKENS if settings.tokens is None else settings.tokens
        given = (subject.model, subject.tokenizer, subject.held_out)
        with stage(self.name) as progress:
            report = evaluate_draft(*given, max_tokens=tokens, progress=progress)
        with stage("rounds of drafts") as progress:
            rounds = evaluate_rounds(*given, **_amount(settings), progress=progress)
        return Drafts(**{field.name: getattr(report, field.name) for field in fields(report)}, rounds=tuple(rounds))

    def tables(self, report: Drafts) -> Sequence[Table | Pairs]:
        """Agreement of the draft layer with the trunk by step; what a round gives."""
        rows = [
            (f"{step}", figure(this, ".1%"), "-" if chain is None else figure(chain, ".1%"))
            for step, (this, chain) in enumerate(zip(report.agreement, report.accepted, strict=True), 1)
        ]
        title = (
            f"draft layer against trunk, {report.tokens:,} tokens of {plural(report.files, 'file')} "
            f"(the trunk itself is right at {report.trunk_right.value:.1%})"
        )
        agreement = Table(title, ("step", "agrees", "accepted up to this step"), rows)
        return [agreement, _rounds_table(report.rounds)]

    def pictures(self, report: Drafts) -> Sequence[Sequence[Panel]]:
        """Bars by step, and by place in a round."""
        return [[lambda axes: _draw_agreement(axes, report), lambda axes: _draw_places(axes, report.rounds)]]


def _amount(settings: SuiteSettings) -> dict[str, Any]:
    """How much `evaluate_rounds` shall do."""
    files = DEFAULT_FILES if settings.files is None else settings.files
    return {"temperatures": settings.temperatures, "drafts": settings.drafts, "files": files,
            "context": settings.context}  # fmt: skip


def _rounds_table(rounds: Sequence[Rounds]) -> Table:
    drafts = max((len(one.places) for one in rounds), default=0)
    columns = ("drafter", "temperature", "text", "files", "tokens per round", "tokens per step")
    rows = [
        (
            one.drafter, f"{one.temperature:g}", one.kind, f"{one.prompts}",
            "-" if one.accepted_length is None else figure(one.accepted_length, ".2f"),
            figure(one.tokens_per_step, ".2f"), *_accepted(one.places, drafts),
        )
        for one in rounds
    ]  # fmt: skip
    title = "rounds of drafts; a round's tokens include the one behind its drafts"
    return Table(title, (*columns, *(f"{place}." for place in range(1, drafts + 1))), rows)


def _accepted(places: Sequence[Estimate], drafts: int) -> list[str]:
    """Accepted part at each place; a dash where nothing was drafted so far ahead."""
    return [f"{places[place].value:.0%}" if place < len(places) else "-" for place in range(drafts)]


def _draw_places(axes: Any, rounds: Sequence[Rounds]) -> None:
    for one in rounds:
        if one.kind == ALL and one.places:
            steps, values = range(1, len(one.places) + 1), [place.value for place in one.places]
            axes.plot(steps, values, marker="o", label=f"{one.drafter}, temperature {one.temperature:g}")
    axes.set(ylim=(0, 1), xlabel="place in the round", ylabel="accepted", title="drafts accepted by place")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)


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
