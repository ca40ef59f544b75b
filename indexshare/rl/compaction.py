"""When a context runs out: the policy writes a summary, and goes on with it and the last whole steps.

As CompactionRL (arXiv 2607.05378) describes it; the size of the reserve is not published and is a setting here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from indexshare.rl.trajectory import SegmentBuilder, Source

Step = tuple[list[int], list[int]]  # an action and its observation


@dataclass(frozen=True, kw_only=True)
class Compaction:
    """How contexts are compacted.

    Attributes:
        reserve: a context with room for fewer tokens than this is compacted before the next action. It should hold an
            action, its observation, the instruction and a summary; a rollout that finds no room ends there.
        instruction: token ids that ask for the summary.
        resume: token ids in front of the summary in the next context.
        summary_tokens: most tokens of a summary.
        keep: last whole steps that are copied behind the summary; fewer where they do not fit.
        most: compactions of a rollout.
        train_summary: whether the tokens of summaries are trained.
    """

    reserve: int
    instruction: tuple[int, ...]
    resume: tuple[int, ...] = ()
    summary_tokens: int = 32
    keep: int = 2
    most: int = 3
    train_summary: bool = True

    def __post_init__(self) -> None:
        need = len(self.instruction) + self.summary_tokens
        if self.reserve < need or min(self.summary_tokens, self.most) < 1 or self.keep < 0:
            raise ValueError(
                f"compaction: reserve is {self.reserve}, keep {self.keep}, most {self.most}; expected a reserve of at "
                f"least {need} tokens (instruction and summary), keep of 0 or more, most of 1 or more"
            )

    def next_context(
        self, system: Sequence[int], summary: Sequence[int], steps: Sequence[Step], context: int
    ) -> SegmentBuilder:
        """The context behind a summary: system text, summary, and the last whole steps that leave the reserve free."""
        kept = list(steps[len(steps) - min(self.keep, len(steps)) :])
        fixed = len(system) + len(self.resume) + len(summary)
        while kept and fixed + sum(len(a) + len(o) for a, o in kept) > context - self.reserve - 1:
            kept.pop(0)
        builder = SegmentBuilder()
        builder.add(list(system), Source.SYSTEM)
        builder.add(list(self.resume), Source.USER)
        builder.add(list(summary), Source.COPIED)
        for action, observation in kept:
            builder.add([*action, *observation], Source.COPIED)
        return builder
