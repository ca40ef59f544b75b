"""Suites for the long tasks: questions over generated texts, a suite for each task of the registry, or one for many."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from indexshare.config.shipped import model_directory
from indexshare.data.long_tasks import FORMS, Form, LongTask, fit_item
from indexshare.eval import plots
from indexshare.eval.answers import open_answers
from indexshare.eval.asking import Asker, Counter
from indexshare.eval.bootstrap import Estimate
from indexshare.eval.forward import check_length
from indexshare.eval.long import (
    DEFAULT_LENGTHS,
    Asking,
    LongReport,
    by_question,
    compare_long,
    evaluate_long,
    mean_score,
)
from indexshare.eval.paired import Paired
from indexshare.eval.subject import Subject
from indexshare.eval.suites.base import (
    Comparison,
    Pairs,
    Panel,
    Stage,
    Suite,
    SuiteSettings,
    Table,
    between,
    figure,
    points,
)
from indexshare.text.chat_template import ChatTemplate
from indexshare.text.tokenizer import Tokenizer

Reports = tuple[LongReport, ...]  # one for each task
GROUP = "long"
TEMPLATE_TOKENS = 64  # that a chat template nobody knows may put around a message


class LongSuite(Suite[Reports]):
    """Some tasks; under the name of the task where it is one."""

    reads = frozenset({"lengths", "samples", "seed", "form", "answers", "answer_tokens", "parallel"})
    needs_text = False
    group = GROUP

    def __init__(self, *tasks: LongTask) -> None:
        self.name, self.tasks = tasks[0].name if len(tasks) == 1 else GROUP, tasks

    def check(self, subject: Subject, settings: SuiteSettings) -> None:
        """Settings in range, a form that the model has, lengths that it reads and that the shortest questions fit."""
        for length in settings.lengths or ():
            check_length(subject.model, length)
        self.check_asker(subject.asker(checked_form(settings.form)), settings)

    def check_asker(
        self, asker: Asker, settings: SuiteSettings, counter: Callable[[LongTask], Counter] | None = None
    ) -> None:
        """Refuse (ValueError) settings out of range, and lengths that a task does not fit."""
        asking = self.asking(settings, settings.lengths or ())
        for task in self.tasks:
            for length in sorted(settings.lengths or ())[:1]:
                fit_item(
                    task, seed=settings.seed, index=0, length=length, count=(counter or asker.counter)(task),
                    form=asker.form,
                    answer_tokens=asking.answer_tokens,
                )  # fmt: skip

    def run(self, subject: Subject, settings: SuiteSettings, stage: Stage) -> Reports:
        """Ask at every length."""
        return self.ask(subject.asker(checked_form(settings.form)), settings, stage, most=subject.context)

    def ask(
        self,
        asker: Asker,
        settings: SuiteSettings,
        stage: Stage,
        *,
        counter: Callable[[LongTask], Counter] | None = None,
        most: int | None = None,
        done: list[LongReport] | None = None,
    ) -> Reports:
        """Ask any program at every length.

        Args:
            asker: whom.
            settings: how much.
            stage: for progress.
            counter: of another program, to ask the same questions as it was asked.
            most: longest of the default lengths.
            done: gets the report of each task as soon as it is there, for those who do not live to see all of them.
        """
        lengths = settings.lengths or tuple(n for n in DEFAULT_LENGTHS if most is None or n <= most)
        asking, reports = self.asking(settings, lengths, counter), [] if done is None else done
        with open_answers(settings.answers) as log:
            for task in self.tasks:
                with stage(task.name) as progress:
                    reports.append(evaluate_long(asker, task, asking, log=log, progress=progress))
        return tuple(reports)

    def asking(
        self, settings: SuiteSettings, lengths: Sequence[int], counter: Callable[[LongTask], Counter] | None = None
    ) -> Asking:
        """How questions are put; ValueError for settings out of range."""
        return Asking(
            lengths=lengths, samples=settings.samples, seed=settings.seed, counter=counter,
            answer_tokens=settings.answer_tokens, parallel=settings.parallel,
        )  # fmt: skip

    def tables(self, report: Reports) -> Sequence[Table | Pairs]:
        """Mean score by length, for several tasks in columns of lengths."""
        first = report[0]
        refusals = list(_refusals(report))
        if len(report) == 1:
            rows = [[f"{length:,}", _figure(first.mean(length))] for length in first.lengths]
            return [Table(f"{first.task}: {self.tasks[0].says}", ("length", "score"), rows), *refusals]
        rows = [[one.task, *(_figure(one.mean(length)) for length in one.lengths)] for one in report]
        rows.append(["all", *(_figure(_together(report, [length])) for length in first.lengths)])
        title = f"long questions: score by length, {first.form} form"
        return [Table(title, ("", *(f"{length:,}" for length in first.lengths)), rows), *refusals]

    def facts(self, report: Reports) -> dict[str, Any]:
        """Plain values by task, and of all of them where there are several."""
        facts: dict[str, Any] = {one.task: one.to_dict() for one in report}
        if len(report) > 1:
            found = [(length, _together(report, [length])) for length in report[0].lengths]
            facts[GROUP] = [
                {"length": n, "score": one and one.value, "interval": one and one.interval} for n, one in found
            ]
        return facts

    def pictures(self, report: Reports) -> Sequence[Sequence[Panel]]:
        """Score by length: a line for one task, a heatmap for several."""
        if len(report) == 1:
            return [[lambda axes: _draw_line(axes, report[0])]]
        return [[lambda axes: _draw_scores(axes, report, f"score by length, {report[0].form} form")]]

    def compare(self, names: Sequence[str], reports: Sequence[Reports]) -> Comparison:
        """Every program against the first one: pairs of answers to the same questions."""
        tables = [self._table(names[n], names[0], reports[n], reports[0]) for n in range(1, len(names))]
        facts = [self._facts(names[n], names[0], reports[n], reports[0]) for n in range(1, len(names))]
        heat: list[Panel] = [lambda axes, r=report: _draw_scores(axes, r, r[0].program) for report in reports]  # type: ignore[misc]
        apart: list[Panel] = [
            lambda axes, r=report, n=name: _draw_differences(axes, r, reports[0], f"{n} less {names[0]}")  # type: ignore[misc]
            for name, report in zip(names[1:], reports[1:], strict=True)
        ]
        return Comparison([part for parts in tables for part in parts], facts, [heat, apart])

    def _table(self, name: str, base: str, mine: Reports, theirs: Reports) -> list[Table | Pairs]:
        lengths = mine[0].lengths
        rows = [
            [task.name, *(points(compare_long(m, t, chosen)) for chosen in (*([n] for n in lengths), None))]
            for task, m, t in zip(self.tasks, _each(mine), _each(theirs), strict=True)
        ]
        if len(mine) > 1:
            rows.append(["all", *(points(compare_long(mine, theirs, c)) for c in (*([n] for n in lengths), None))])
        title = f"{name} less {base}, points of score with 95 % intervals of the pairs (* leaves out 0)"
        table = Table(title, ("", *(f"{n:,}" for n in lengths), "all lengths"), rows)
        whole = compare_long(mine, theirs)
        return [table] if whole is None else [table, Pairs(f"{name} against {base}", _summary(whole))]

    def _facts(self, name: str, base: str, mine: Reports, theirs: Reports) -> dict[str, Any]:
        def at(m: Reports, t: Reports, lengths: Sequence[int] | None) -> dict[str, Any] | None:
            found = compare_long(m, t, lengths)
            return None if found is None else found.to_dict()

        tasks = {
            m[0].task: {"lengths": [{"length": n} | (at(m, t, [n]) or {}) for n in m[0].lengths], "all": at(m, t, None)}
            for m, t in zip(_each(mine), _each(theirs), strict=True)
        }
        return {"model": name, "less": base, "all": at(mine, theirs, None), "tasks": tasks}


def together(suites: Sequence[Suite[Any]]) -> list[Suite[Any]]:
    """The suites with all long tasks in one, in the place of the first of them."""
    tasks = [task for suite in suites if isinstance(suite, LongSuite) for task in suite.tasks]
    first = next((suite for suite in suites if isinstance(suite, LongSuite)), None)
    return [
        LongSuite(*tasks) if suite is first else suite
        for suite in suites
        if suite is first or not isinstance(suite, LongSuite)
    ]


def checked_form(form: str) -> Form:
    """The form of that name; ValueError for one that there is not."""
    for known in FORMS:
        if form == known:
            return known
    raise ValueError(f"--form is {form!r}; expected base (a text to be continued) or chat (a message)")


def counted_by(name: str, form: Form) -> Callable[[LongTask], Counter]:
    """Tokens of prompts under a model's tokenizer, in chat form with its template or room for one.

    Raises:
        ValueError: no such model, or it has no tokenizer.
    """
    directory = model_directory(name)
    tokenizer = Tokenizer.load(directory)
    template = ChatTemplate.load(directory) if form == "chat" else None
    if template is not None:
        return lambda task: lambda prompt: len(tokenizer.encode(template.render([{"role": "user", "content": prompt}])))
    around = TEMPLATE_TOKENS if form == "chat" else 0
    return lambda task: lambda prompt: len(tokenizer.encode_prompt(prompt)) + around


def _each(reports: Reports) -> list[Reports]:
    return [(report,) for report in reports]


def _together(reports: Reports, lengths: Sequence[int]) -> Estimate | None:
    """Mean over the tasks, if all were answered."""
    if not all(report.at(length) for report in reports for length in lengths):
        return None
    return mean_score(by_question(reports, lengths))


def _figure(estimate: Estimate | None) -> str:
    return "refused" if estimate is None else figure(estimate, ".0%")


def _summary(found: Paired) -> list[tuple[str, str]]:
    shown = found.difference.changed(100, 0)
    return [
        ("difference", f"{shown.value:+.1f} points{between(shown.interval, '.1f')}"),
        ("questions", f"{found.questions:,}, each at every length: {found.better:,} better, {found.worse:,} worse"),
        ("McNemar's exact test", f"p = {found.p_value:.2g}"),
    ]


def _refusals(reports: Reports) -> list[Pairs]:
    """Lengths that were refused, with the program's own words, each reason once."""
    said: dict[str, list[int]] = {}
    for report in reports:
        for length, reason in report.refused.items():
            said.setdefault(reason, []).append(length)
    rows = [(", ".join(f"{n:,}" for n in sorted(set(lengths))), reason) for reason, lengths in said.items()]
    return [Pairs("lengths that were refused, which count neither as right nor as wrong", rows)] if rows else []


def _draw_line(axes: Any, report: LongReport) -> None:
    found = [(length, estimate) for length in report.lengths if (estimate := report.mean(length)) is not None]
    plots.line(axes, [n for n, _ in found], [estimate for _, estimate in found], report.program, bars=True)
    axes.set(ylim=(-0.02, 1.02), ylabel="score", title=report.task)
    plots.lengths_axis(axes, report.lengths)


def _draw_scores(axes: Any, reports: Reports, title: str) -> None:
    values = [[None if found is None else found.value for found in map(one.mean, one.lengths)] for one in reports]
    labels = [["refused" if v is None else f"{v:.0%}" for v in row] for row in values]
    plots.heatmap(axes, values, labels, rows=[r.task for r in reports], lengths=reports[0].lengths)
    axes.set(title=title)


def _draw_differences(axes: Any, mine: Reports, theirs: Reports, title: str) -> None:
    found = [[compare_long(m, t, [n]) for n in m[0].lengths] for m, t in zip(_each(mine), _each(theirs), strict=True)]
    values = [[None if one is None else one.difference.value for one in row] for row in found]
    labels = [
        ["-" if one is None else f"{100 * one.difference.value:+.0f}{'*' * one.sure}" for one in row] for row in found
    ]
    plots.heatmap(axes, values, labels, rows=[r.task for r in mine], lengths=mine[0].lengths, signed=True)
    axes.set(title=f"{title} (points; * the interval leaves out 0)")
