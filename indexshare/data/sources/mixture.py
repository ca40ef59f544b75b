"""Batches whose rows come from several sources."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np

from indexshare.data.batch import Batch, Window, stack
from indexshare.data.sources.base import Source, State


class Mixture:
    """Batches whose rows come from several sources, each row's source drawn by weight.

    Args:
        sources: by name.
        weights: by name; expected part of the rows is weight / sum of weights.
        seed: of the draws.

    Raises:
        ValueError: names differ, or a weight is negative, or all are zero.
    """

    def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, float], *, seed: int) -> None:
        if set(sources) != set(weights):
            raise ValueError(f"weights name {sorted(weights)}, the sources are {sorted(sources)}")
        if min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ValueError(f"weights {weights} must be non-negative, and one of them positive")
        self._sources = dict(sources)
        self._names = sorted(sources)
        self._weights = [weights[name] for name in self._names]
        self._seed = seed
        self._rows = 0

    def batch(self, rows: int, length: int) -> Batch:
        """The next batch: `rows` rows of `length` inputs."""
        return stack([self._row(length + 1) for _ in range(rows)])

    def _row(self, length: int) -> np.ndarray | Window:
        name = random.Random(f"{self._seed}/{self._rows}").choices(self._names, self._weights)[0]
        self._rows += 1
        return self._sources[name].window(length)

    def state(self) -> State:
        """Rows drawn, and the state of each source under `name.key`."""
        record = {"rows": self._rows}
        for name, source in self._sources.items():
            record |= {f"{name}.{key}": value for key, value in source.state().items()}
        return record

    def restore(self, state: State) -> None:
        """Continue from a state.

        Raises:
            ValueError: the state was saved by a mixture of other sources.
        """
        expected = self.state().keys()
        if state.keys() != expected:
            raise ValueError(f"data state has {sorted(state)}, this mixture needs {sorted(expected)}")
        self._rows = state["rows"]
        for name, source in self._sources.items():
            prefix = name + "."
            source.restore({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
