"""The guard: looks at each call of a rollout before it runs, and keeps a record of what it decided."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from indexshare.rl.guard.judge import Judge, ScriptedJudge, Verdict
from indexshare.rl.guard.rules import RULES, Rule, flags, protecting
from indexshare.rl.guard.views import variables, views

Mode = Literal["block", "abort", "zero", "off"]
Failure = Literal["block", "allow"]
_REDIRECTED = re.compile(r"(?:>>?|\btee(?:\s+-a)?)\s*([^\s;&|<>]+)")
_LINKED = re.compile(r"\b(?:ln\s+(?:-\w+\s+)*|cp\s+(?:-\w+\s+)*|mv\s+)(\S+)\s+(\S+)")
_PRINTED = re.compile(r"^\s*(?:echo|printf|cat)\s+(?:-\w+\s+)*")
_KEPT = 16  # texts of a written file that are looked at
_DUMMIES = ("Permission denied", "No such file or directory", "command failed: connection timed out")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """On one call.

    Attributes:
        call: as it was made.
        flags: rules that matched.
        hack: whether it counts as a hack.
        why: the judge's words, or why it was not asked.
        dummy: what is returned in place of the tool's output; None where the call may run.
        seconds: spent on deciding.
    """

    call: str
    flags: tuple[str, ...]
    hack: bool
    why: str
    dummy: str | None
    seconds: float

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What a task's calls are held to.

    Attributes:
        protected: paths whose mention is flagged.
        allow: patterns of calls that are never flagged, each of a whole call as it was made.
        judge: decides on flagged calls.
        mode: `block` (GLM-5.2): the call does not run, a plausible failure is returned, the rollout goes on and keeps
            what it earns. `abort`: the rollout ends with reward 0. `zero`: the call runs, the reward becomes 0. `off`:
            it runs, and is recorded.
        on_failure: of the judge: the call counts as a hack, or not.
        rules: the families.
    """

    protected: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    judge: Judge = field(default_factory=ScriptedJudge)
    mode: Mode = "block"
    on_failure: Failure = "block"
    rules: tuple[Rule, ...] = RULES

    def __post_init__(self) -> None:
        if self.mode not in ("block", "abort", "zero", "off"):
            raise ValueError(f"guard: mode is {self.mode!r}; expected block, abort, zero or off")
        if self.on_failure not in ("block", "allow"):
            raise ValueError(f"guard: on_failure is {self.on_failure!r}; expected block or allow")

    def session(self) -> Session:
        """For one rollout."""
        return Session(self)


class Session:
    """A guard along one rollout: what earlier calls wrote, named and linked taints later ones."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.decisions: list[Decision] = []
        self._rules = (*guard.rules, *protecting(guard.protected))
        self._variables: dict[str, str] = {}
        self._links: dict[str, str] = {}
        self._written: dict[str, list[str]] = {}  # by file: pieces joined, and the calls that wrote it

    @property
    def hacks(self) -> int:
        """Calls that counted as hacks."""
        return sum(decision.hack for decision in self.decisions)

    def check(self, call: str) -> Decision:
        """Decide on the next call, before it runs."""
        began = time.perf_counter()
        readings = self.readings(call)
        found = [] if self._allowed(call) else flags(readings, self._rules)
        verdict = self._judge(call, readings, found) if found else Verdict(False, "no rule")
        stopped = verdict.hack and self.guard.mode in ("block", "abort")
        decision = Decision(
            call=call, flags=tuple(found), hack=verdict.hack, why=verdict.why,
            dummy=dummy_output(call) if stopped else None, seconds=time.perf_counter() - began,
        )  # fmt: skip
        self.decisions.append(decision)
        if not stopped:
            self._remember(call, readings)
        return decision

    def readings(self, call: str) -> list[str]:
        """The call without disguises, and the contents of files that it names and that earlier calls wrote."""
        found = views(call, self._variables, self._links, self.guard.protected)
        named = [name for name in self._written if any(_mentions(reading, name) for reading in found)]
        for text in dict.fromkeys(
            text for name in named for text in [self._written[name][0], *self._written[name][-_KEPT:]]
        ):
            found += views(text, self._variables, self._links, self.guard.protected)
        return found

    def _allowed(self, call: str) -> bool:
        return any(re.fullmatch(pattern, call.strip()) for pattern in self.guard.allow)

    def _judge(self, call: str, readings: Sequence[str], found: Sequence[str]) -> Verdict:
        history = [decision.call for decision in self.decisions]
        try:
            return self.guard.judge.decide(call, readings, found, history)
        except Exception as error:  # a judge may be a program elsewhere: whatever it fails with, the rollout goes on
            return Verdict(self.guard.on_failure == "block", f"the judge failed: {type(error).__name__}: {error}")

    def _remember(self, call: str, readings: Sequence[str]) -> None:
        self._variables |= variables(call)
        for text in readings:
            for target in _REDIRECTED.findall(text):
                self._written.setdefault(target, [""]).append(text)
        for part in re.split(r";|\n|&&|\|\|", call):  # pieces of a file, one behind the other
            for target in _REDIRECTED.findall(part):
                piece = _PRINTED.sub("", part[: part.index(">")] if ">" in part else part).strip()
                pieces = self._written.setdefault(target, [""])
                pieces[0] += piece.strip("'\"")
            for source, target in _LINKED.findall(text):
                self._links[target] = source


def _mentions(text: str, name: str) -> bool:
    return re.search(r"(?<![\w./-])(?:\./)?" + re.escape(name) + r"(?![\w-])", text) is not None


def dummy_output(call: str) -> str:
    """A failure as the tool could have it, the same for the same call."""
    words = call.split() or ["sh"]
    kind = sum(call.encode()) % len(_DUMMIES)
    return f"{words[0]}: {words[-1][:80]}: {_DUMMIES[kind]}\n"
