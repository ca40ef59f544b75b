"""One rollout as it is written: what the policy is asked next, and what its tokens lead to. Knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from indexshare.rl.compaction import Compaction, Step
from indexshare.rl.environment import Environment
from indexshare.rl.trajectory import Segment, SegmentBuilder, Source, Status, Trajectory


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of a rollout.

    Attributes:
        context: most tokens of one segment.
        turn_tokens: most tokens of one action.
        max_turns: most actions.
        compaction: what happens where the context runs out; None ends the rollout there.
    """

    context: int
    turn_tokens: int
    max_turns: int = 1
    compaction: Compaction | None = None

    def __post_init__(self) -> None:
        if min(self.context, self.turn_tokens, self.max_turns) < 1:
            raise ValueError(f"{self}; expected at least 1 of context, turn_tokens and max_turns")


class Episode:
    """A rollout from its first token to its end.

    Args:
        number: of the rollout in its run.
        environment: a fresh one.
        limits: see there.
        task, name, group: of the trajectory.
    """

    def __init__(
        self, number: int, environment: Environment, limits: Limits, *, task: str, name: str, group: str = ""
    ) -> None:
        self.number, self.environment = number, environment
        self.requests = 0  # asked of the policy so far
        self._limits, self._labels = limits, {"task": task, "name": name, "group": group}
        opening = environment.reset()
        self._system = list(opening.system)
        self._builder = SegmentBuilder()
        self._builder.add(self._system, Source.SYSTEM)
        self._builder.add(list(opening.user), Source.USER)
        self._segments: list[Segment] = []
        self._steps: list[Step] = []
        self._pending: list[int] = []  # tokens of an action or summary that is not finished
        self._turns, self._reward = 0, 0.0
        self._details: dict[str, Any] = {}
        self._status: Status | None = None
        self.summarising = False
        self._prepare()

    @property
    def finished(self) -> bool:
        """Whether nothing more is asked."""
        return self._status is not None

    @property
    def prompt(self) -> list[int]:
        """The context that the next token stands behind."""
        return list(self._builder.tokens)

    @property
    def room(self) -> int:
        """Most tokens to sample now."""
        compaction = self._limits.compaction
        most = compaction.summary_tokens if self.summarising and compaction else self._limits.turn_tokens
        return min(most - len(self._pending), self._limits.context - len(self._builder))

    def receive(self, tokens: Sequence[int], logprobs: Sequence[float], version: int, *, whole: bool) -> None:
        """Take what the policy of a version sampled; `whole` says that the action or summary is complete."""
        compaction = self._limits.compaction
        trained = not self.summarising or compaction is None or compaction.train_summary
        source = Source.SUMMARY if self.summarising else Source.ACTION
        self._builder.sample(list(tokens), logprobs, version, source, trained=trained)
        self._pending += tokens
        if not whole:
            return
        done, self._pending = self._pending, []
        if self.summarising:
            self._go_on(done)
        else:
            self._act(done)

    def end(self, status: Status, **details: Any) -> None:
        """End it now."""
        self._status = status
        self._details |= details

    def trajectory(self) -> Trajectory:
        """What it left; only once it is finished."""
        assert self._status is not None, "the rollout goes on"
        details = self._details | {"turns": self._turns, "compactions": len(self._segments)}
        segments = (*self._segments, self._builder.build())
        return Trajectory(segments=segments, reward=self._reward, status=self._status, details=details, **self._labels)

    def _act(self, action: list[int]) -> None:
        reply = self.environment.step(action)
        self._turns += 1
        self._details |= reply.details
        left = self._limits.context - len(self._builder)
        if reply.done:
            self._reward = reply.reward
            self._builder.add(list(reply.tokens[:left]), Source.OBSERVATION)
            self._status = "completed"
            return
        self._builder.earn(reply.reward)
        if len(reply.tokens) > left:  # half of an observation would be another one
            self._status = "truncated"
            return
        self._builder.add(list(reply.tokens), Source.OBSERVATION)
        self._steps.append((action, list(reply.tokens)))
        self._prepare()

    def _prepare(self) -> None:
        """Before an action: end what has run out, or ask for a summary."""
        left = self._limits.context - len(self._builder)
        compaction = self._limits.compaction
        if self._turns >= self._limits.max_turns:
            self._status = "truncated"
        elif compaction and left < compaction.reserve and len(self._segments) < compaction.most:
            if left < len(compaction.instruction) + 1:
                self._status = "truncated"
                return
            self._builder.add(list(compaction.instruction), Source.USER)
            self.summarising = True
        elif left < 1:
            self._status = "truncated"

    def _go_on(self, summary: list[int]) -> None:
        """A new segment behind a summary."""
        compaction = self._limits.compaction
        assert compaction is not None
        self._segments.append(self._builder.build())
        self._builder = compaction.next_context(self._system, summary, self._steps, self._limits.context)
        self.summarising = False
        if len(self._builder) >= self._limits.context:
            self._status = "truncated"
