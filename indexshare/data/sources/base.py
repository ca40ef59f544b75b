"""What a source of rows is: the next one on demand, and a state from which it goes on exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from indexshare.data.batch import Window

State = dict[str, Any]  # plain values: numbers, strings, lists and dicts of them


class Source(ABC):
    """An endless stream of rows of token ids.

    A source built the same way and given a state yields exactly the rows that followed that state.
    """

    @abstractmethod
    def window(self, length: int) -> np.ndarray | Window:
        """The next row of `length` tokens: ids, int64 [length], or a `Window` where not all of them are targets."""

    @abstractmethod
    def state(self) -> State:
        """Where the stream stands."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Continue from a state."""

    def check_length(self, length: int) -> None:  # noqa: B027 (most have rows of any length)
        """Raise ValueError where rows of `length` tokens cannot be had; asked before a run begins."""
