"""A suite that nobody has heard of: one class and one call make it a choice of `indexshare eval`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from indexshare.cli import main
from indexshare.eval.subject import Subject
from indexshare.eval.suites import registry
from indexshare.eval.suites.base import Pairs, Panel, Stage, Suite, SuiteSettings, Table


@dataclass(frozen=True)
class Letters:
    """What the made-up suite reports."""

    vowels: int
    others: int


class LettersSuite(Suite[Letters]):
    """Letters in the model's own vocabulary; at least one sample, or there is nothing to say."""

    name = "letters"
    reads = frozenset({"samples"})
    needs_text = False

    def check(self, subject: Subject, settings: SuiteSettings) -> None:
        if settings.samples > 100:
            raise ValueError("letters counts at most 100 entries")

    def run(self, subject: Subject, settings: SuiteSettings, stage: Stage) -> Letters:
        with stage(self.name, "entries") as progress:
            text = "".join(subject.tokenizer.decode([i]) for i in range(60, 60 + settings.samples))
            progress(settings.samples, settings.samples)
        vowels = sum(letter in "aeiou" for letter in text)
        return Letters(vowels, len(text) - vowels)

    def tables(self, report: Letters) -> Sequence[Table | Pairs]:
        return [
            Pairs("letters", [("vowels", str(report.vowels))]),
            Table("kinds", ("kind", "count"), [("vowels", "1")]),
        ]

    def pictures(self, report: Letters) -> Sequence[Sequence[Panel]]:
        def panel(axes: Any) -> None:
            axes.bar([0, 1], [report.vowels, report.others])

        return [[panel]]


@pytest.fixture
def letters() -> Iterator[LettersSuite]:
    suite = LettersSuite()
    registry.register(suite)
    yield suite
    registry.unregister(suite.name)


def test_a_registered_suite_is_a_choice_of_the_command(
    letters: LettersSuite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "p.png"
    assert main(["eval", "pico", "--suite", "letters", "--samples", "40", "--plot", str(picture)]) == 0
    captured = capsys.readouterr()
    assert "letters\nvowels" in captured.out and "kinds\n" in captured.out and "letters: " in captured.err
    assert picture.stat().st_size > 1000
    assert main(["eval", "pico", "--suite", "letters,needle", "--samples", "1", "--lengths", "400", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts) == {"model", "letters", "needle"} and set(facts["letters"]) == {"vowels", "others"}


def test_its_checks_come_before_any_work(letters: LettersSuite, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "pico", "--suite", "needle,letters", "--samples", "101"]) == 2
    assert capsys.readouterr().err == "error: letters counts at most 100 entries\n"


def test_names_and_settings_of_suites_are_checked(letters: LettersSuite) -> None:
    with pytest.raises(ValueError, match="a suite is called 'letters'"):
        registry.register(LettersSuite())
    for name in ("", "all", "two words", "a,b"):
        suite = LettersSuite()
        suite.name = name
        with pytest.raises(ValueError, match="expected a free name"):
            registry.register(suite)
    suite = LettersSuite()
    suite.name, suite.reads = "other", frozenset({"colour"})  # type: ignore[misc]
    with pytest.raises(ValueError, match="'colour', which is no field"):
        registry.register(suite)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--suite", "draft", "--samples", "3"), "--samples is read by needle, recall, forms, multi-key, "),
        (("--suite", "needle", "--max-tokens", "99"), "--max-tokens is read by held-out, but --suite is needle;"),
        (("--files", "0"), "--files is 0; expected at least 1"),
    ],
)
def test_an_option_that_no_suite_reads_is_refused(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "pico", *arguments]) == 2
    assert message in capsys.readouterr().err
