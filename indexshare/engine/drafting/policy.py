"""How many tokens to draft: a number, or what pays by what was measured. Plain Python, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

from indexshare.engine.request import Request

MOST_AUTO = 7  # drafts of a round where the number is chosen
_TRY_AGAIN = 64  # tokens without drafts after which one is tried again
_MEMORY = 0.97  # weight that an older observation keeps at each newer one
_DRAFT_MEMORY = 0.93
_ROW_SHARE = 0.4  # of one row's time, what a further row is taken to cost before any was measured


class Policy(Protocol):
    """Says how many drafts a request gets, and is told what came of them."""

    def count(self, request: Request, source: str, sequences: int) -> int:
        """Drafts to ask of a drafter next, beside `sequences` that are being written, this one included."""

    def rate(self, request: Request, source: str, sequences: int) -> float:
        """How good that number is; where several drafters could be asked, the one with the highest goes first."""

    def drafted(self, request: Request, source: str, drafts: int, accepted: int) -> None:
        """So many drafts of a round stayed."""

    def timed(self, rows: int, seconds: float) -> None:
        """A step of so many rows, all of sequences that are being written, took this long."""

    def timed_draft(self, source: str, drafts: int, seconds: float) -> None:
        """So many drafts of a drafter took this long to make."""


@dataclass(frozen=True)
class Fixed(Policy):
    """Always the same number."""

    drafts: int

    def count(self, request: Request, source: str, sequences: int) -> int:
        return self.drafts

    def rate(self, request: Request, source: str, sequences: int) -> float:
        return 0.0

    def drafted(self, request: Request, source: str, drafts: int, accepted: int) -> None:
        pass

    def timed(self, rows: int, seconds: float) -> None:
        pass

    def timed_draft(self, source: str, drafts: int, seconds: float) -> None:
        pass


@dataclass
class RowCosts:
    """Seconds of a step as `base + rows * row`: a line through what was measured, older steps counting less."""

    weight: float = 0.0
    rows: float = 0.0
    squares: float = 0.0
    seconds: float = 0.0
    products: float = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """One step; one that took thrice what was to be expected was held up by something else."""
        if self.weight > 4:
            base, row = self.line
            seconds = min(seconds, 3 * (base + rows * row))
        for name, value in (
            ("weight", 1.0), ("rows", rows), ("squares", rows * rows), ("seconds", seconds),
            ("products", rows * seconds),
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) * _MEMORY + value)

    @property
    def line(self) -> tuple[float, float]:
        """Base and row, in seconds; where steps had few numbers of rows, near the guess of `_ROW_SHARE`."""
        if not self.weight:
            return 1 - _ROW_SHARE, _ROW_SHARE
        rows, seconds = self.rows / self.weight, self.seconds / self.weight
        guess = _ROW_SHARE * seconds / (1 - _ROW_SHARE + _ROW_SHARE * rows)
        spread = max(self.squares / self.weight - rows * rows, 0.0)
        slope = (self.products / self.weight - rows * seconds + 0.1 * guess) / (spread + 0.1)
        row = min(max(slope, 0.0), seconds / rows)
        return seconds - rows * row, row


@dataclass
class _Record:
    """What became of one drafter's drafts in one request."""

    hits: float = 1.2  # as if two had been drafted and a little more than one had stayed
    trials: float = 2.0
    last_tried: int = 0

    @property
    def acceptance(self) -> float:
        return self.hits / self.trials


@dataclass
class Measured(Policy):
    """The number of drafts with the most expected tokens per second, 0 where plain decoding has more.

    A round with k drafts, each right with probability a if all before it are, gives 1 + a + ... + a^k tokens. It takes
    the step's time for k + 1 rows (its share of the fixed part) and the drafter's time for k drafts. The probability is
    measured per request and drafter; the times come from the steps of all requests. Where drafting stops, one draft is
    tried again every `_TRY_AGAIN` tokens.

    Times differ from run to run, and so does the choice. What changes with it is said in `docs/drafting.md`.
    """

    most: int = MOST_AUTO
    costs: RowCosts = field(default_factory=RowCosts)
    _draft_seconds: dict[str, float] = field(default_factory=dict)
    _warm: set[str] = field(default_factory=set)  # drafters, and "" for steps, whose first time has passed
    _records: WeakKeyDictionary[Request, dict[str, _Record]] = field(default_factory=WeakKeyDictionary)

    def count(self, request: Request, source: str, sequences: int) -> int:
        best, _ = self._best(request, source, sequences)
        if best == 0 and len(request.tokens) - self._record(request, source).last_tried >= _TRY_AGAIN:
            return 1
        return best

    def rate(self, request: Request, source: str, sequences: int) -> float:
        return self._best(request, source, sequences)[1]

    def _best(self, request: Request, source: str, sequences: int) -> tuple[int, float]:
        """The number of drafts with the most expected tokens per second, and those."""
        acceptance = self._record(request, source).acceptance
        draft, (base, row) = self._draft_seconds.get(source, 0.0), self.costs.line
        best, most, tokens = 0, 1 / max(base / sequences + row, 1e-12), 1.0
        for drafts in range(1, self.most + 1):
            tokens += acceptance**drafts
            rate = tokens / max(base / sequences + row * (1 + drafts) + draft * drafts, 1e-12)
            if rate > most:
                best, most = drafts, rate
        return best, most

    def drafted(self, request: Request, source: str, drafts: int, accepted: int) -> None:
        record = self._record(request, source)
        trials = accepted + (accepted < drafts)  # nobody knows whether those behind a wrong one were right
        record.hits = record.hits * _DRAFT_MEMORY**trials + accepted
        record.trials = record.trials * _DRAFT_MEMORY**trials + trials
        record.last_tried = len(request.tokens)

    def timed(self, rows: int, seconds: float) -> None:
        if "" in self._warm:
            self.costs.add(rows, seconds)
        self._warm.add("")

    def timed_draft(self, source: str, drafts: int, seconds: float) -> None:
        if source not in self._warm:  # the first time, weights and memory are got ready
            self._warm.add(source)
            return
        before = self._draft_seconds.get(source, seconds / drafts)
        self._draft_seconds[source] = 0.8 * before + 0.2 * min(seconds / drafts, 2 * before)

    def _record(self, request: Request, source: str) -> _Record:
        of_request = self._records.setdefault(request, {})
        return of_request.setdefault(source, _Record(last_tried=len(request.tokens)))
