"""The suites by name, in the order in which they run; open for others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from indexshare.data.long_tasks import long_tasks
from indexshare.eval.suites.base import Suite, SuiteSettings
from indexshare.eval.suites.draft import DraftSuite
from indexshare.eval.suites.fill import FillSuite
from indexshare.eval.suites.forms import FormsSuite
from indexshare.eval.suites.held_out import HeldOutSuite
from indexshare.eval.suites.long import LongSuite
from indexshare.eval.suites.repository import RepositorySuite
from indexshare.eval.suites.retrieval import RetrievalSuite

_SUITES: dict[str, Suite[Any]] = {}


def register(suite: Suite[Any]) -> None:
    """Make a suite known under its name, behind those that are there.

    Raises:
        ValueError: the name is taken or not fit for a list, or it reads a setting that does not exist.
    """
    if suite.name in (*_SUITES, *_groups(), "all") or not suite.name or set(suite.name) & set(", "):
        raise ValueError(f"a suite is called {suite.name!r}; expected a free name without commas and spaces")
    unknown = suite.reads - {field.name for field in fields(SuiteSettings)}
    if unknown:
        raise ValueError(f"the suite {suite.name!r} reads {sorted(unknown)[0]!r}, which is no field of SuiteSettings")
    _SUITES[suite.name] = suite


def unregister(name: str) -> None:
    """Forget a suite; KeyError for an unknown one."""
    del _SUITES[name]


def suite_names() -> tuple[str, ...]:
    """The names of all suites, in the order in which they run."""
    return tuple(_SUITES)


def choose_suites(text: str) -> tuple[Suite[Any], ...]:
    """The suites of a comma-separated list of names and groups (`all` for every one), each once, in their own order.

    Raises:
        ValueError: an unknown name.
    """
    names = {name.strip() for name in text.split(",")}
    unknown = sorted(names - {*_SUITES, *_groups(), "all"})
    if unknown:
        known = ", ".join(
            [*_SUITES, *(f"{group} (all {len(members)} of them)" for group, members in _groups().items())]
        )
        raise ValueError(f"--suite has {unknown[0]!r}; expected some of {known}, separated by commas, or all")
    return tuple(suite for suite in _SUITES.values() if names & {suite.name, suite.group, "all"})


def _groups() -> dict[str, list[str]]:
    """The names of suites that have another name in common, by that name."""
    found: dict[str, list[str]] = {}
    for suite in _SUITES.values():
        if suite.group:
            found.setdefault(suite.group, []).append(suite.name)
    return found


def check_settings(suites: Sequence[Suite[Any]], settings: SuiteSettings) -> None:
    """Refuse (ValueError) values out of range, and settings that were given but that none of the suites reads."""
    if settings.files is not None and settings.files < 1:
        raise ValueError(f"--files is {settings.files}; expected at least 1")
    plain = SuiteSettings()
    given = [field.name for field in fields(settings) if getattr(settings, field.name) != getattr(plain, field.name)]
    for name in given:
        if not any(name in suite.reads for suite in suites):
            readers = ", ".join(suite.name for suite in _SUITES.values() if name in suite.reads)
            chosen = ", ".join(suite.name for suite in suites)
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{option} is read by {readers}, but --suite is {chosen}; add one of them, or leave it out"
            )


for _suite in (
    HeldOutSuite(),
    RetrievalSuite("needle"),
    RetrievalSuite("recall"),
    FormsSuite(),
    FillSuite(),
    RepositorySuite(),
    DraftSuite(),
):
    register(_suite)
for _task in long_tasks().values():
    register(LongSuite(_task))
