"""What the C++ step is told of a cache with rows in files: where rows lie in memory, and how to bring others there."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from indexshare.cache.spill import Group, Slots
from indexshare.cache.spilled import SpilledCache, SpilledView

_FETCH = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)


class Fetch:
    """Brings what a layer's rows have chosen into memory, from within a step; errors wait until it is over.

    Args:
        cache: with rows in files.
        layers: of the cache, by their number in the step.
    """

    def __init__(self, cache: SpilledCache, layers: Sequence[int]) -> None:
        self._groups = [cache.groups[layer] for layer in layers]
        self._error: BaseException | None = None
        self._function = _FETCH(self._fetch)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value

    def _fetch(self, layer: int, address: int, count: int) -> int:
        try:
            slots = np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(address))
            group = self._groups[layer]
            bring(group, np.unique(slots))
            slots[:] = group.places(slots)
        except BaseException as error:  # an exception cannot pass through C++
            self._error = error
            return 1
        return 0

    def raise_error(self) -> None:
        """Raise what went wrong in the last step."""
        error, self._error = self._error, None
        assert error is not None
        raise error


def bring(group: Group, slots: Slots) -> None:
    """Have ascending slots in memory; AssertionError where they do not fit, against which `engine.storage` counts."""
    if not group.fetch(slots):
        raise AssertionError(f"{len(slots)} rows do not fit among the {group.num_places} in memory")


@dataclass(frozen=True)
class Places:
    """Of a step's rows by layer, in C arrays: `slots` to write, and `tables` of those that attend to everything."""

    slots: Any
    tables: Any
    keep: Any


def places_of(view: SpilledView, layers: Sequence[int], limit: int, *, writes: bool) -> Places:
    """Have memory hold the rows that are written, and all that rows with at most `limit` tokens attend to.

    Args:
        view: the rows.
        layers: of the cache, by their number in the step.
        limit: contexts up to this length are attended in full.
        writes: whether the step writes its rows.
    """
    written = view.written.numpy()
    past = [_past(view, number, limit) for number in range(len(view.spans))]
    groups = {id(group): group for group in (view.cache.groups[layer] for layer in layers)}
    found = {key: _in_group(group, written, past, writes) for key, group in groups.items()}
    of_layer = [found[id(view.cache.groups[layer])] for layer in layers]
    slots, tables = [written for written, _ in of_layer], []
    for _, of_sequence in of_layer:
        per_row = [of_sequence[n] for n, span in enumerate(view.spans) for _ in range(span.length)]
        tables.append(_addresses(per_row))
    return Places(_addresses(slots), _addresses(tables), (found, tables))


def _past(view: SpilledView, sequence: int, limit: int) -> Slots:
    """Slots of a sequence that rows of this batch attend to without choosing."""
    span = view.spans[sequence]
    count = min(span.total, limit) if span.past < limit else 0
    return view.slots(sequence, torch.arange(count)).numpy()


def _addresses(arrays: Sequence[Any]) -> Any:
    """A C array of the addresses of numpy arrays, or of C arrays."""
    found = [a.ctypes.data if isinstance(a, np.ndarray) else ctypes.addressof(a) for a in arrays]
    return (ctypes.c_void_p * len(found))(*found)


def _in_group(group: Group, written: Slots, past: Sequence[Slots], writes: bool) -> tuple[Slots, list[Slots]]:
    if writes:
        group.admit(written)
    everything = np.unique(np.concatenate([*past, written] if writes else past))
    if len(everything):
        bring(group, everything)
    return group.places(written), [group.places(slots) for slots in past]
