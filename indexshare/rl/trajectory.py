"""What a rollout leaves: segments of token ids with all that learning needs of each token. Nothing is re-tokenised.

A rollout is an ordered list of segments. Each is a context that the policy saw whole, from its first token on; a new
one begins where the context was compacted. A token that the policy sampled is trained once: where it was sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, Literal

import numpy as np

NOT_SAMPLED = -1  # in place of a weight version
Status = Literal["completed", "truncated", "aborted", "failed"]
_KINDS = {
    "tokens": np.int64, "sources": np.uint8, "mask": np.bool_, "logprobs": np.float32, "versions": np.int32,
    "rewards": np.float32,
}  # fmt: skip


class Source(IntEnum):
    """Where a token comes from."""

    SYSTEM = 0
    USER = 1
    ACTION = 2
    OBSERVATION = 3
    SUMMARY = 4  # where it was sampled; in the segment behind, it is COPIED
    COPIED = 5


SAMPLED = (Source.ACTION, Source.SUMMARY)


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """Tokens of one context, T of them.

    Attributes:
        tokens: int64 [T].
        sources: uint8 [T], a `Source` each.
        mask: bool [T], whether a token is trained; only sampled ones may be, and never the first of a segment.
        logprobs: float32 [T], natural log-probability of a sampled token under the policy that sampled it; 0 elsewhere.
        versions: int32 [T], version of the weights that sampled it; -1 elsewhere.
        rewards: float32 [T], what was earned right after a token, besides the reward at the end of the rollout.
        selection: int32 [T, L, k], positions that each of L Full layers chose for each token, -1 for none; or None.
        columns: more about each token, float32 [T] by name, such as `advantage`: for the viewer.

    Raises:
        ValueError: arrays that disagree, or a token that may not be trained.
    """

    tokens: np.ndarray
    sources: np.ndarray
    mask: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    rewards: np.ndarray
    selection: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))
        columns = {name: np.asarray(values, dtype=np.float32) for name, values in self.columns.items()}
        object.__setattr__(self, "columns", columns)
        length = len(self.tokens)
        shapes = {name: getattr(self, name).shape for name in _KINDS}
        shapes |= {name: values.shape for name, values in columns.items()}
        bad = [f"{name} {list(shape)}" for name, shape in shapes.items() if shape != (length,)]
        if bad or not length:
            raise ValueError(
                f"a segment has {length} tokens and {', '.join(bad)}; expected one value per token, one at least"
            )
        if self.selection is not None and (self.selection.ndim != 3 or len(self.selection) != length):
            raise ValueError(f"selection has shape {list(self.selection.shape)}; expected [{length}, layers, k]")
        self._check_sampled()

    def _check_sampled(self) -> None:
        sampled = np.isin(self.sources, SAMPLED)
        if self.mask[0] or (self.mask & ~sampled).any():
            place = 0 if self.mask[0] else int((self.mask & ~sampled).argmax())
            raise ValueError(
                f"token {place} is masked as trained and is {Source(int(self.sources[place])).name}; only sampled "
                "tokens behind the first may be"
            )
        if (sampled & (self.versions < 0)).any() or (~sampled & (self.versions != NOT_SAMPLED)).any():
            raise ValueError(f"versions must be 0 or more where tokens were sampled and {NOT_SAMPLED} elsewhere")
        if not np.isfinite(self.logprobs).all() or (self.logprobs > 1e-6).any():
            raise ValueError("logprobs must be finite and at most 0")
        if not np.isfinite(self.rewards).all():
            raise ValueError("rewards must be finite")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def trained(self) -> int:
        """Tokens that are trained."""
        return int(self.mask.sum())

    def with_columns(self, **columns: np.ndarray) -> Segment:
        """The same with more columns."""
        return replace(self, columns={**self.columns, **columns})


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """One rollout.

    Attributes:
        name: unique in a run, such as `train-17`.
        task: the environment's name.
        segments: in order.
        reward: of the whole rollout, earned at its end.
        status: `completed`, or how it ended otherwise; `truncated` ran out of context, turns or tokens.
        group: rollouts of the same problem share it.
        details: plain values, for people and for metrics.
    """

    name: str
    task: str
    segments: tuple[Segment, ...]
    reward: float
    status: Status = "completed"
    group: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.segments:
            raise ValueError(f"trajectory {self.name!r} has no segments")
        if not np.isfinite(self.reward):
            raise ValueError(f"trajectory {self.name!r} has reward {self.reward}; expected a finite number")

    @property
    def trained(self) -> int:
        """Tokens that are trained, in all segments."""
        return sum(segment.trained for segment in self.segments)

    @property
    def total_reward(self) -> float:
        """Everything earned, at the end and before."""
        return self.reward + float(sum(segment.rewards.sum() for segment in self.segments))

    @property
    def versions(self) -> tuple[int, int]:
        """Oldest and newest version of the weights that sampled a trained token; (-1, -1) without any."""
        found = np.concatenate([segment.versions[segment.mask] for segment in self.segments])
        return (int(found.min()), int(found.max())) if len(found) else (NOT_SAMPLED, NOT_SAMPLED)

    def staleness(self, version: int) -> int:
        """By how many versions the oldest trained token is behind `version`."""
        oldest = self.versions[0]
        return 0 if oldest == NOT_SAMPLED else version - oldest


class SegmentBuilder:
    """A segment that grows at its end."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._sources: list[int] = []
        self._mask: list[bool] = []
        self._logprobs: list[float] = []
        self._versions: list[int] = []
        self._rewards: list[float] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, tokens: Sequence[int], source: Source) -> None:
        """Tokens that were not sampled here."""
        self._extend(tokens, source, [0.0] * len(tokens), NOT_SAMPLED, trained=False)

    def sample(
        self, tokens: Sequence[int], logprobs: Sequence[float], version: int, source: Source, *, trained: bool = True
    ) -> None:
        """Tokens that the policy of a version sampled, with their log-probabilities."""
        self._extend(tokens, source, logprobs, version, trained=trained)

    def earn(self, reward: float) -> None:
        """A reward for the last token."""
        self._rewards[-1] += reward

    def _extend(
        self, tokens: Sequence[int], source: Source, logprobs: Sequence[float], version: int, *, trained: bool
    ) -> None:
        number = len(tokens)
        self.tokens += tokens
        self._sources += [int(source)] * number
        self._mask += [trained] * number
        self._logprobs += [min(0.0, value) for value in logprobs]
        self._versions += [version] * number
        self._rewards += [0.0] * number
        assert len(self._logprobs) == len(self.tokens)

    def build(self) -> Segment:
        """The segment so far."""
        return Segment(
            tokens=np.asarray(self.tokens), sources=np.asarray(self._sources), mask=np.asarray(self._mask),
            logprobs=np.asarray(self._logprobs), versions=np.asarray(self._versions),
            rewards=np.asarray(self._rewards),
        )  # fmt: skip
