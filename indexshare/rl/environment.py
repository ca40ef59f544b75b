"""What a policy acts in: token ids in, token ids out. A new task is a subclass of each of the two classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from indexshare.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What stands before the first action: a system text, which every context begins with, and a first turn."""

    user: Sequence[int]
    system: Sequence[int] = ()


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What follows an action.

    Attributes:
        tokens: observation; none at the end as a rule.
        reward: earned by the action. That of the last one is the rollout's.
        done: whether it was the last.
        details: plain values about the rollout, merged over its turns.
    """

    tokens: Sequence[int] = ()
    reward: float = 0.0
    done: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


class Environment(ABC):
    """One problem. Everything that happens follows from its number and the actions, so that it can be played again."""

    @abstractmethod
    def reset(self) -> Opening:
        """The beginning; called once."""

    @abstractmethod
    def step(self, action: Sequence[int]) -> Reply:
        """What a finished action does; it ends with a stop id unless it ran out of tokens."""

    @abstractmethod
    def expert(self) -> list[int]:
        """A good next action: for demonstrations, which a policy begins from."""

    def expert_summary(self) -> list[int]:
        """A summary as demonstrations have it; only where a task is compacted."""
        return []


class Task(ABC):
    """Problems of one kind.

    Attributes:
        name: of trajectories and metrics.
        tokenizer: of the model that acts.
        turn_tokens: most tokens of one action.
        max_turns: most actions of a rollout.
    """

    name: str
    turn_tokens: int
    max_turns: int = 1

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @abstractmethod
    def environment(self, number: int, *, held_out: bool = False) -> Environment:
        """The problem of a number, the same for the same number; held-out ones are never trained on."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an action."""
        return (self.tokenizer.end_id,)

    def spell(self, text: str) -> list[int]:
        """Ids of a text character by character, so that no merge of the vocabulary hides a letter."""
        return [token for row in self.tokenizer.encode_batch(list(text), parse_special=False) for token in row]

    def observe(self, text: str) -> list[int]:
        """The ids of a tool's output, with what stands around outputs in this task."""
        return self.spell(text)

    def answer(self, text: str) -> list[int]:
        """The ids of a whole action."""
        return [*self.spell(text), self.tokenizer.end_id]

    def read(self, action: Sequence[int]) -> str | None:
        """The text of an action, or None where it does not end with a stop id."""
        if not action or action[-1] not in self.stop_ids:
            return None
        return self.tokenizer.decode(list(action[:-1]))


def byte_tokenizer() -> Tokenizer:
    """One id for each byte, besides the special tokens: for models that learn a task from nothing."""
    return train_bpe([], 256 + len(SPECIAL_TOKENS))
