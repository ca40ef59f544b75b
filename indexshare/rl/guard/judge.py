"""Who decides whether a flagged call is a hack. A model behind an address, or what a test scripts, is a subclass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Whether a call is a hack, and why in a few words."""

    hack: bool
    why: str


class Judge(ABC):
    """Looks at the intent of calls that rules have flagged."""

    @abstractmethod
    def decide(self, call: str, readings: Sequence[str], flags: Sequence[str], history: Sequence[str]) -> Verdict:
        """Decide on a call.

        Args:
            call: as it was made.
            readings: of it, disguises taken off.
            flags: rules that matched.
            history: calls of the rollout before it.

        Raises:
            Exception: any; the guard does what its setting for failures says.
        """


class ScriptedJudge(Judge):
    """Decides by a function of the call and its flags; every flagged call is a hack unless one is given."""

    def __init__(self, decide: Callable[[str, Sequence[str]], bool] | None = None) -> None:
        self._decide = decide

    def decide(self, call: str, readings: Sequence[str], flags: Sequence[str], history: Sequence[str]) -> Verdict:
        """By the function."""
        hack = True if self._decide is None else self._decide(call, flags)
        return Verdict(hack, "scripted")
