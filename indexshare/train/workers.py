"""Threads that run parts of a batch side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Workers:
    """Threads that run micro-batches side by side, each with one compute thread.

    On a few cores this beats splitting every small product over the cores: nothing waits at a barrier, and other
    programs on the machine slow it down in proportion only. Results come in the order of the micro-batches, so an
    update depends on the number of workers by rounding only, and not at all on which of them is faster.

    Args:
        count: micro-batches at a time; 1 runs them in the calling thread with all compute threads.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"{count} workers; expected at least 1")
        start = partial(torch.set_num_threads, 1)
        self.count = count
        self._pool = ThreadPoolExecutor(count, initializer=start) if count > 1 else None

    def map(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> Iterable[_Result]:
        """Results in order."""
        return map(function, items) if self._pool is None else self._pool.map(function, items)


@contextlib.contextmanager
def compute_threads(device: str, workers: int | None = None) -> Iterator[int]:
    """How many workers a run has: as given, or one per compute thread on a CPU and one elsewhere.

    While there are several, torch has one thread in this one: idle ones would spin against the workers.
    """
    threads = torch.get_num_threads()
    count = workers if workers is not None else threads if device == "cpu" else 1
    try:
        if count > 1:
            torch.set_num_threads(1)
        yield count
    finally:
        torch.set_num_threads(threads)
