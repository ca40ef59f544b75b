"""`indexshare eval`: what a model makes of text it was not trained on, and what it finds in long texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from indexshare.cli.measuring import MeasuringBar
from indexshare.cli.output import console, note, print_json, print_pairs, print_table

if TYPE_CHECKING:
    from indexshare.eval.subject import Subject
    from indexshare.eval.suites.base import Pairs, Suite, SuiteSettings, Table


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SuiteOptions:
    """How much of each suite is run.

    Parameters
    ----------
    lengths
        Context lengths in tokens, separated by commas (2048,8192 or 2K,8K). With them `held-out` also states the prices
        of sparsity and of sharing at each; `needle` and `recall` use 1K,2K,4K,8K unless given.
    ancestor
        A model whose layers are all Full, trained on the same text: `held-out` states the price of sharing against it.
    attention
        Kinds of attention that `needle` and `recall` compare: selection, full, recent (the most recent tokens).
    samples
        Questions of `needle` and `recall` at each length and depth.
    tokens
        Most held-out tokens that the prices (at each length) and `draft` score: 65,536 unless given.
    files
        Most files that `held-out` and `repository` score, drawn by the seed: all, and 24, unless given.
    context
        Tokens of context for `repository`: 16,384, or what the model reads, unless given.
    seed
        Of the generated texts and of the choice of files.
    packages
        Installed packages that the model was not trained on, separated by commas: score their files in place of the
        model's held-out ones.
    """

    lengths: str | None = None
    ancestor: str | None = None
    attention: str = "selection,full,recent"
    samples: int = 5
    tokens: int | None = None
    files: int | None = None
    context: int | None = None
    seed: int = 0
    packages: str | None = None

    @property
    def unseen(self) -> list[str]:
        """The names in `packages`."""
        return [name.strip() for name in (self.packages or "").split(",") if name.strip()]

    def settings(self, max_tokens: int | None) -> SuiteSettings:
        """The suites' form of these options; ValueError for lists that are none."""
        from indexshare.eval.suites.base import SuiteSettings

        return SuiteSettings(
            lengths=parse_lengths(self.lengths),
            ancestor=self.ancestor,
            attention=tuple(name.strip() for name in self.attention.split(",")),
            samples=self.samples,
            tokens=self.tokens,
            files=self.files,
            context=self.context,
            seed=self.seed,
            max_tokens=max_tokens,
        )


def evaluate(
    model: str,
    /,
    *,
    suite: str = "held-out",
    text: Path | None = None,
    pattern: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    max_tokens: int | None = None,
    options: SuiteOptions | None = None,
    plot: Path | None = None,
    dtype: str | None = None,
    weights: str | None = None,
    device: str = "cpu",
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Score a model: bits per byte on held-out files, retrieval by length and depth, use of its repository, drafting.

    Parameters
    ----------
    model
        Name of a shipped model, or a model directory.
    suite
        What to measure, separated by commas: held-out (bits per byte), needle, recall, repository, draft, or all.
    text
        Score this folder (or file). By default the model's own held-out files, by its training.json.
    pattern
        Files of --text, such as `*.md` (in any folder); may be given several times. By default those that the model was
        trained on, by its training.json, or `*.py`.
    max_tokens
        Longest context of `held-out`, 8,192 or what the model reads unless given; longer files are scored in stretches.
    plot
        Also draw what was measured into this file (png, svg or pdf); needs matplotlib.
    dtype
        float32 or bfloat16; unless given, float32 on a CPU, else as stored.
    weights
        int8 or int4: measure the model with its matrices in 8 or 4 bits per weight, as `generate --weights` runs it.
    device
        Where to run: cpu, cuda, cuda:1, ...
    json
        Print one JSON object instead of tables.
    """
    from indexshare.cli.options import check_device
    from indexshare.eval.plots import check_picture
    from indexshare.eval.subject import load_subject
    from indexshare.eval.suites.registry import check_settings, choose_suites

    options, suites = options or SuiteOptions(), choose_suites(suite)
    settings = options.settings(max_tokens)
    check_settings(suites, settings)
    check_device(device)
    if plot is not None:
        check_picture(plot)
    needs_text = any(chosen.needs_text for chosen in suites)
    subject = load_subject(
        model, text=text, patterns=pattern, packages=options.unseen, needs_text=needs_text, dtype=dtype,
        weights=weights, device=device,
    )  # fmt: skip
    _tell(subject, suites, settings, plot, json=json)


def _tell(
    subject: Subject, suites: Sequence[Suite[Any]], settings: SuiteSettings, plot: Path | None, *, json: bool
) -> None:
    """Check all suites before the first one runs, measure, and tell what was measured whatever comes after it."""
    from indexshare.eval.plots import draw

    for suite in suites:
        suite.check(subject, settings)
    for line in _remarks(subject, suites, settings):
        note(line)
    reports: list[tuple[Suite[Any], Any]] = []
    try:
        measure(subject, suites, settings, reports)
    finally:
        facts = {k: v for chosen, report in reports for k, v in chosen.facts(report).items()}
        if json and reports:
            print_json({"model": subject.name} | facts)
        elif reports:
            show(reports)
    if plot is not None:
        draw([row for chosen, report in reports for row in chosen.pictures(report)], plot, subject.name)


def _remarks(subject: Subject, suites: Sequence[Suite[Any]], settings: SuiteSettings) -> list[str]:
    """What is not measured of what might have been expected, in a line each."""
    from indexshare.text.files import describe_skipped

    unread = describe_skipped([entry for entry in subject.left_out if not entry.routine])
    shortened = [(suite.name, suite.cut_short(subject, settings)) for suite in suites]
    return [unread] * bool(unread) + [f"{name}: {words}" for name, words in shortened if words]


def measure(
    subject: Subject, suites: Sequence[Suite[Any]], settings: SuiteSettings, reports: list[tuple[Suite[Any], Any]]
) -> None:
    """Add every suite with its report to `reports`, as soon as it is there."""
    with MeasuringBar() as bar:
        for suite in suites:
            reports.append((suite, suite.run(subject, settings, bar.stage)))


def show(reports: Sequence[tuple[Suite[Any], Any]]) -> None:
    """The tables of every suite's report, a blank line between any two."""
    from indexshare.eval.suites.base import Table

    parts: list[Table | Pairs] = [part for suite, report in reports for part in suite.tables(report)]
    out = console()
    for number, part in enumerate(parts):
        if number:
            print()
        if isinstance(part, Table):
            print_table(part.title, part.columns, part.rows, to=out)
        else:
            print_pairs(part.title, part.pairs, to=out)


def parse_lengths(text: str | None) -> tuple[int, ...] | None:
    """The lengths of a comma-separated list, `2K` meaning 2048; ValueError for anything else."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    numbers = [(part[:-1], 1024) if part[-1:] in ("k", "K") else (part, 1) for part in parts]
    if not all(number.isascii() and number.isdigit() for number, _ in numbers):
        raise ValueError(f"--lengths is {text!r}; expected numbers of tokens separated by commas: 2048,8192 or 2K,8K")
    return tuple(int(number) * unit for number, unit in numbers)
