"""Rows to learn from: token ids, which of them are targets, where they stand, and what else is known of each token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor

IGNORE = -100  # in place of a target that does not count


@dataclass(frozen=True, kw_only=True)
class Window:
    """One row, from a source that says more than token ids.

    Attributes:
        tokens: int64 [length].
        mask: bool [length], whether a token is a target; None for all of them.
        extra: more about each token, by name, [length, ...]: for objectives that look for that name.
    """

    tokens: np.ndarray
    mask: np.ndarray | None = None
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of equal length, of one update or a part of it.

    Attributes:
        tokens: int64 [B, S + 1]; inputs are the first S columns, targets the last S.
        mask: bool [B, S + 1], whether a token is a target (the first of a row never is); None for all.
        positions: int64 [B, S], rotary positions of the inputs; None for 0, 1, 2, ... in each row.
        extra: more about each token, by name, [B, S + 1, ...]: for objectives that look for that name.
    """

    tokens: Tensor
    mask: Tensor | None = None
    positions: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """B."""
        return self.tokens.shape[0]

    @property
    def length(self) -> int:
        """S, inputs of a row."""
        return self.tokens.shape[1] - 1

    @property
    def inputs(self) -> Tensor:
        """int64 [B * S], row after row."""
        return self.tokens[:, :-1].reshape(-1)

    def ahead(self, shift: int, fill: int = 0) -> Tensor:
        """The token `shift` places after each input, int64 [B * S]; `fill` where the row has none."""
        return self._ahead(self.tokens, shift, fill)

    def targets(self, shift: int = 1) -> Tensor:
        """Target of each input `shift` places ahead, int64 [B * S]; IGNORE where there is none or it does not count."""
        tokens = self.tokens if self.mask is None else self.tokens.masked_fill(~self.mask, IGNORE)
        return self._ahead(tokens, shift, IGNORE)

    def count(self, shift: int = 1) -> int:
        """Targets `shift` places ahead, at least 1: the divisor of a mean over them."""
        if self.mask is None:
            return max(1, self.rows * (self.length + 1 - shift))
        return max(1, int(self.mask[:, shift:].sum()))

    def split(self, rows: int) -> list[Batch]:
        """Parts of at most so many rows, in order."""
        return [self._map(itemgetter(slice(at, at + rows))) for at in range(0, self.rows, rows)]

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device."""
        return self._map(lambda values: values.to(device))

    def _ahead(self, tokens: Tensor, shift: int, fill: int) -> Tensor:
        shifted = tokens.new_full((self.rows, self.length), fill)
        shifted[:, : self.length + 1 - shift] = tokens[:, shift:]
        return shifted.reshape(-1)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        def optional(values: Tensor | None) -> Tensor | None:
            return None if values is None else function(values)

        return Batch(
            tokens=function(self.tokens),
            mask=optional(self.mask),
            positions=optional(self.positions),
            extra={name: function(values) for name, values in self.extra.items()},
        )


def stack(windows: Sequence[np.ndarray | Window]) -> Batch:
    """A batch of rows of equal length; bare arrays are token ids.

    A row without a mask beside rows with one is target everywhere; a row without an `extra` that another row has gets
    zeros there.
    """
    rows = [row if isinstance(row, Window) else Window(tokens=row) for row in windows]
    masks = None
    if any(row.mask is not None for row in rows):
        masks = [np.ones(len(row.tokens), dtype=bool) if row.mask is None else row.mask for row in rows]
    known = {name: values for row in rows for name, values in row.extra.items()}
    extra = {name: [row.extra.get(name, np.zeros_like(like)) for row in rows] for name, like in known.items()}
    return Batch(
        tokens=_joined([row.tokens for row in rows]),
        mask=None if masks is None else _joined(masks),
        extra={name: _joined(parts) for name, parts in extra.items()},
    )


def _joined(rows: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(rows))
