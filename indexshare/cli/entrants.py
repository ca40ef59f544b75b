"""What `indexshare eval` measures: models in this process and models on a server, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from indexshare.cli.suite_options import QuestionOptions, RunOptions, TextOptions

if TYPE_CHECKING:
    from indexshare.data.long_tasks import Form
    from indexshare.eval.asking import Asker
    from indexshare.eval.subject import Subject
    from indexshare.eval.suites.base import Stage, Suite, SuiteSettings


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """One model.

    Attributes:
        name: as the user called it; with its address where it is on a server.
        subject: the model with its text, None where it is on a server.
        asker: answers long questions, None where none are asked.
        reports: what was measured, with the suites.
    """

    name: str
    subject: Subject | None
    asker: Asker | None
    reports: list[tuple[Suite[Any], Any]] = field(default_factory=list)

    def check(self, suite: Suite[Any], settings: SuiteSettings, counter: Callable[..., Any] | None) -> None:
        """Refuse (ValueError) what the suite cannot measure here."""
        if self.subject is not None:
            suite.check(self.subject, settings)
        from indexshare.eval.suites.long import LongSuite

        if isinstance(suite, LongSuite) and self.asker is not None:
            suite.check_asker(self.asker, settings, counter)

    def measure(
        self, suite: Suite[Any], settings: SuiteSettings, stage: Stage, counter: Callable[..., Any] | None
    ) -> None:
        """Run the suite and keep its report; of long questions also that of the kinds before an error or Ctrl+C."""
        from indexshare.eval.suites.long import LongSuite

        if isinstance(suite, LongSuite) and self.asker is not None:
            most = None if self.subject is None else self.subject.context
            done = list[Any]()
            try:
                suite.ask(self.asker, settings, stage, counter=counter, most=most, done=done)
            finally:
                whole = len(done) == len(suite.tasks)
                if done:
                    self.reports.append((suite if whole else LongSuite(*suite.tasks[: len(done)]), tuple(done)))
            return
        assert self.subject is not None
        self.reports.append((suite, suite.run(self.subject, settings, stage)))

    def facts(self) -> dict[str, Any]:
        """Everything that was measured, as plain values."""
        return {"model": self.name} | {k: v for suite, report in self.reports for k, v in suite.facts(report).items()}


def enter(
    models: Sequence[str], suites: Sequence[Suite[Any]], text: TextOptions, questions: QuestionOptions,
    running: RunOptions,
) -> list[Entrant]:  # fmt: skip
    """Models, then those on a server; every name is looked up before anything is loaded.

    Raises:
        ValueError: a name that is none, the same one twice, no answer from the server, or chat form without a template.
    """
    from indexshare.config.shipped import model_directory
    from indexshare.eval.subject import load_subject, split_sharing
    from indexshare.eval.suites.long import LongSuite, checked_form

    for name in models:
        model_directory(split_sharing(name)[0])
        if models.count(name) > 1:
            raise ValueError(f"{name} is named twice; name each model once")
    form = checked_form(questions.form)
    asked, needs_text = any(isinstance(s, LongSuite) for s in suites), any(s.needs_text for s in suites)
    servers = _on_server(questions, form)
    entrants = []
    for name in models:
        subject = load_subject(
            name, text=text.text, patterns=text.pattern, packages=text.unseen, needs_text=needs_text,
            dtype=running.dtype, weights=running.weights, device=running.device,
            caches=(running.cache_dtype, running.index_cache_dtype),
        )  # fmt: skip
        entrants.append(Entrant(name=name, subject=subject, asker=subject.asker(form) if asked else None))
    return entrants + servers


def _on_server(questions: QuestionOptions, form: Form) -> list[Entrant]:
    if questions.url is None:
        return []
    from indexshare.config.environment import read_secret
    from indexshare.eval.remote import ServerAsker

    key = None if questions.api_key_env is None else read_secret(questions.api_key_env, "--api-key-env")
    names: Sequence[str | None] = questions.model_name or (None,)
    askers = [ServerAsker(questions.url, model=name, key=key, form=form) for name in names]
    return [Entrant(name=asker.name, subject=None, asker=asker) for asker in askers]


def common_counter(entrants: Sequence[Entrant], questions: QuestionOptions) -> Callable[..., Any] | None:
    """What counts the tokens of texts for all, so that they are asked the same; None where each one counts itself."""
    from indexshare.eval.suites.long import checked_form, counted_by

    if questions.tokenizer is not None:
        return counted_by(questions.tokenizer, checked_form(questions.form))
    first = entrants[0].asker
    return None if first is None or len(entrants) == 1 else first.counter
