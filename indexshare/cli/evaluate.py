"""`indexshare eval`: what models make of text they were not trained on, and what they find in long texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from indexshare.cli.entrants import Entrant, common_counter, enter
from indexshare.cli.measuring import MeasuringBar
from indexshare.cli.output import console, note, print_json, print_pairs, print_table
from indexshare.cli.suite_options import QuestionOptions, RunOptions, SuiteOptions, TextOptions

if TYPE_CHECKING:
    from indexshare.eval.suites.base import Comparison, Pairs, Panel, Suite, SuiteSettings, Table


def evaluate(
    *models: str,
    suite: str = "held-out",
    text: TextOptions | None = None,
    options: SuiteOptions | None = None,
    questions: QuestionOptions | None = None,
    running: RunOptions | None = None,
    plot: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Score models: bits per byte on held-out files, retrieval by length and depth, long questions, drafting.

    Parameters
    ----------
    models
        Names of shipped models, or model directories; several are compared. `DIRECTORY@FFFSSS...` is a model under
        another plan of sharing.
    suite
        What to measure, separated by commas: held-out (bits per byte), needle, recall, forms, fill, repository,
        draft, long (all kinds of long questions, or some by their names), or all.
    plot
        Also draw what was measured into this file (png, svg or pdf); needs matplotlib.
    json
        Print one JSON object instead of tables.
    """
    from indexshare.cli.options import check_device
    from indexshare.eval.plots import check_picture
    from indexshare.eval.suites.long import together
    from indexshare.eval.suites.registry import check_settings, choose_suites

    text, options, running = text or TextOptions(), options or SuiteOptions(), running or RunOptions()
    questions, suites = questions or QuestionOptions(), choose_suites(suite)
    questions.check(models)
    settings = options.settings(questions)
    check_settings(suites, settings)
    check_device(running.device)
    if plot is not None:
        check_picture(plot)
    chosen = together(suites)
    _only_questions(chosen, questions)
    if questions.export_tasks is not None:
        _export(questions.export_tasks, models, chosen[0], settings, questions, json=json)
        return
    entrants = enter(models, chosen, text, questions, running)
    _tell(entrants, chosen, settings, plot, common_counter(entrants, questions), json=json)


def _only_questions(suites: Sequence[Suite[Any]], questions: QuestionOptions) -> None:
    """Refuse (ValueError) what only long questions have where something else is measured too."""
    from indexshare.eval.suites.long import LongSuite

    others = [suite.name for suite in suites if not isinstance(suite, LongSuite)]
    if others and (questions.url is not None or questions.export_tasks is not None):
        reason = "a server answers questions alone" if questions.url is not None else "only questions are exported"
        raise ValueError(f"--suite has {others[0]}, but {reason}; choose --suite long, or some of its kinds")
    if len(others) == len(suites) and questions.tokenizer is not None:
        raise ValueError(f"--tokenizer is read by long questions, but --suite is {', '.join(others)}; leave it out")


def _export(
    folder: Path, models: Sequence[str], suite: Any, settings: SuiteSettings, questions: QuestionOptions, *, json: bool
) -> None:
    """Questions as files; the tokenizer that was named, or the first model's, counts."""
    from indexshare.eval.lm_eval import export_tasks
    from indexshare.eval.suites.long import checked_form, counted_by

    form, name = checked_form(questions.form), questions.tokenizer or next(iter(models), None)
    if settings.lengths is None or name is None:
        raise ValueError("--export-tasks takes --lengths, such as 4K,8K, and a model or a --tokenizer that counts them")
    with MeasuringBar() as bar, bar.stage("writing", "questions") as progress:
        names = export_tasks(
            folder, suite.tasks, suite.asking(settings, settings.lengths), form=form, counter=counted_by(name, form),
            counted_by=name, progress=progress,
        )  # fmt: skip
    if json:
        print_json({"folder": str(folder), "tasks": names})
        return
    print(*names, sep="\n")
    note(f"written to {folder}; lm_eval --include_path {folder} --tasks indexshare_long runs all of them")


def _tell(
    entrants: Sequence[Entrant], suites: Sequence[Suite[Any]], settings: SuiteSettings, plot: Path | None,
    counter: Callable[..., Any] | None, *, json: bool,
) -> None:  # fmt: skip
    """Check all suites before the first one runs, measure, and tell what was measured whatever comes after it."""
    from indexshare.eval.plots import draw

    for entrant in entrants:
        for suite in suites:
            entrant.check(suite, settings, counter)
    for line in _remarks(entrants, suites, settings):
        note(line)
    try:
        measure(entrants, suites, settings, counter)
    finally:
        if json and any(entrant.reports for entrant in entrants):
            print_json(_facts(entrants))
        elif not json:
            show(entrants)
    if plot is not None:
        rows, titles = _pictures(entrants)
        draw(rows, plot, ", ".join(entrant.name for entrant in entrants), titles)


def _remarks(entrants: Sequence[Entrant], suites: Sequence[Suite[Any]], settings: SuiteSettings) -> list[str]:
    """What is not measured of what might have been expected, in a line each; and what was answered before."""
    from indexshare.text.files import describe_skipped

    lines = []
    for subject in (entrant.subject for entrant in entrants if entrant.subject is not None):
        lines.append(describe_skipped([entry for entry in subject.left_out if not entry.routine]))
        shortened = [(suite.name, suite.cut_short(subject, settings)) for suite in suites]
        lines += [f"{name}: {words}" for name, words in shortened if words]
    if settings.answers is not None:
        from indexshare.eval.answers import describe_answers

        askers = [entrant.asker for entrant in entrants if entrant.asker is not None]
        lines.append(describe_answers(settings.answers, askers, settings.seed))
    return list(dict.fromkeys(line for line in lines if line))


def measure(
    entrants: Sequence[Entrant], suites: Sequence[Suite[Any]], settings: SuiteSettings,
    counter: Callable[..., Any] | None = None,
) -> None:  # fmt: skip
    """Give every entrant the report of every suite, as soon as it is there."""
    with MeasuringBar() as bar:
        for entrant in entrants:
            if len(entrants) > 1:
                note(f"{entrant.name}:")
            for suite in suites:
                entrant.measure(suite, settings, bar.stage, counter)


def _comparisons(entrants: Sequence[Entrant]) -> list[tuple[Suite[Any], Comparison]]:
    """What suites say of several entrants side by side; of those suites that were run on all of them."""
    if len(entrants) == 1:
        return []
    names, common = [entrant.name for entrant in entrants], min(len(entrant.reports) for entrant in entrants)
    columns = [[entrant.reports[n] for entrant in entrants] for n in range(common)]
    columns = [column for column in columns if all(suite is column[0][0] for suite, _ in column)]
    return [(column[0][0], column[0][0].compare(names, [report for _, report in column])) for column in columns]


def _facts(entrants: Sequence[Entrant]) -> dict[str, Any]:
    """One object for one entrant; for several a list of them, and what is known of them side by side."""
    if len(entrants) == 1:
        return entrants[0].facts()
    compared = {suite.name: list(found.facts) for suite, found in _comparisons(entrants) if found.facts}
    return {"models": [entrant.facts() for entrant in entrants], "comparison": compared}


def show(entrants: Sequence[Entrant]) -> None:
    """The tables of every report, a blank line between any two, then those of comparisons."""
    parts: list[tuple[str, Table | Pairs]] = []
    for entrant in entrants:
        above = f"{entrant.name}: " if len(entrants) > 1 else ""
        parts += [(above, part) for suite, report in entrant.reports for part in suite.tables(report)]
    parts += [("", part) for _, found in _comparisons(entrants) for part in found.tables]
    for number, (above, part) in enumerate(parts):
        if number:
            print()
        _print(above + part.title, part)


def _print(title: str, part: Table | Pairs) -> None:
    from indexshare.eval.suites.base import Table

    if isinstance(part, Table):
        print_table(title, part.columns, part.rows, to=console())
    else:
        print_pairs(title, part.pairs, to=console())


def _pictures(entrants: Sequence[Entrant]) -> tuple[list[Sequence[Panel]], list[str]]:
    """Rows of panels with their titles: comparisons where there are some, else those of each entrant under its name."""
    rows: list[Sequence[Panel]] = []
    titles: list[str] = []
    compared = [number for number, (_, found) in enumerate(_comparisons(entrants)) if found.pictures]
    for entrant in entrants:
        for number, (suite, report) in enumerate(entrant.reports):
            if number not in compared:
                rows += suite.pictures(report)
        titles += [entrant.name if len(entrants) > 1 else ""] * (len(rows) - len(titles))
    for _, found in _comparisons(entrants):
        rows += found.pictures
    return rows, titles + [""] * (len(rows) - len(titles))
