"""Rows of a cache that lie in a file, with the hot ones in memory: plain arrays of bytes, no tensors.

A `Group` has the rows of several layers under one number, a *slot*; those that lie in memory have a *place* there. All
bytes of a slot stand side by side, in memory and in the file, so that one read brings what a selection names for all
layers that share it. Files are read and written by explicit calls and have no names: nothing outlives the process.
"""

from __future__ import annotations

import os
import tempfile
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexshare.text.files import system_reason

Slots = NDArray[np.int64]
_PINNED = np.iinfo(np.int64).max
_EXTENT_BYTES = 1 << 20  # most that one call reads
_GAP_BYTES = 8 << 10  # read through rather than jumped over


@dataclass
class SpillCounts:
    """What selections named and where it was found.

    Attributes:
        rows: slots that were needed, each counted once for a selection and group.
        found: those of them that lay in memory.
        reads: calls to the system.
        bytes_read, bytes_written: of the files.
        wait_s: spent on reading and writing.
    """

    rows: int = 0
    found: int = 0
    reads: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    wait_s: float = 0.0

    def since(self, before: SpillCounts) -> SpillCounts:
        """What was added since a copy was made."""
        return SpillCounts(**{name: value - getattr(before, name) for name, value in vars(self).items()})


class Group:
    """Slots of one group of layers.

    Args:
        slots: how many there are.
        places: how many of them memory holds.
        row_bytes: of a slot.
        folder: in which the file is made.
        counts: to which is added what happens.

    Raises:
        OSError: no file can be made in the folder.
    """

    def __init__(self, slots: int, places: int, row_bytes: int, folder: Path, counts: SpillCounts) -> None:
        self.row_bytes, self.num_places, self.counts = row_bytes, places, counts
        self.memory = np.empty((places, row_bytes), np.uint8)
        self.failed: dict[int, str] = {}  # slots whose rows are lost, and why
        self.where = np.full(slots, -1, np.int64)
        self._holds = np.full(places, -1, np.int64)
        self._used = np.full(places, -1, np.int64)  # when last; -1 for a place that is free
        self._clock = 0
        self._spoiled: list[int] = []  # slots in memory that hold nothing of use
        self._new: list[Slots] = []  # places written and not in the file yet
        self._num_new = 0
        self._oldest, self._oldest_used = np.empty(0, np.int64), np.empty(0, np.int64)
        self._bounce = np.empty(max(_EXTENT_BYTES, row_bytes), np.uint8)
        file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  open as long as the group is
        self.file_number = file.fileno()
        weakref.finalize(self, file.close)

    def admit(self, slots: Slots) -> Slots:
        """Places for rows (each once) that are about to be written in full; they stay where they are until `flush`."""
        self._clock += 1
        places = self.where[slots]
        self._pin(places[places >= 0])
        missing = slots[places < 0]
        if len(missing):
            self._pin(self._settle(missing))
        return self.where[slots]

    def _pin(self, places: Slots) -> None:
        fresh = places[self._used[places] != _PINNED]
        if len(fresh):
            self._used[fresh] = _PINNED
            self._new.append(fresh)
            self._num_new += len(fresh)

    def fetch(self, slots: Slots, *, again: bool = False) -> bool:
        """Bring slots (ascending, each once) into memory; False, and nothing happens, where they do not fit.

        `again`: they were counted before, only what is not there any more counts.
        """
        if len(slots) + self._num_new > self.num_places:
            return False
        places = self.where[slots]
        missing = slots[places < 0]
        self.counts.rows += len(missing) if again else len(slots)
        self.counts.found += 0 if again else len(slots) - len(missing)
        self._clock += 1
        found = places[places >= 0]
        self._used[found[self._used[found] != _PINNED]] = self._clock
        if len(missing):
            taken = self._settle(missing)
            began = time.perf_counter()
            for low, high, rows in self._read(missing):
                self.memory[taken[low:high]] = rows
            self.counts.wait_s += time.perf_counter() - began
        return True

    def places(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where slots lie, any shape; all of them in memory, and -1 stays -1."""
        places: NDArray[np.int64] = self.where[slots]
        if slots.size and slots.min() < 0:
            places[slots < 0] = -1
        return places

    def columns(self, slots: Slots, first: int, last: int) -> NDArray[np.uint8]:
        """Bytes `first` to `last` of slots (ascending, each once), `[n, last - first]`; they need not fit memory."""
        out = np.empty((len(slots), last - first), np.uint8)
        places = self.where[slots]
        here = np.flatnonzero(places >= 0)
        out[here] = self.memory[places[here], first:last]
        away = np.flatnonzero(places < 0)
        self.counts.rows += len(slots)
        self.counts.found += len(here)
        began = time.perf_counter()
        for low, high, rows in self._read(slots[away]):
            out[away[low:high]] = rows[:, first:last]
        self.counts.wait_s += time.perf_counter() - began
        return out

    def flush(self) -> None:
        """Write what is new into the file; rows that cannot be written are lost, and `failed` says so."""
        if self._new:
            self._write_new(np.concatenate(self._new))
        if self._spoiled:
            places = self.where[np.unique(self._spoiled)]
            places = places[places >= 0]
            self.where[self._holds[places]] = self._holds[places] = self._used[places] = -1
            self._spoiled.clear()

    def _write_new(self, places: Slots) -> None:
        self._new, self._num_new = [], 0
        places = places[np.argsort(self._holds[places])]
        slots = self._holds[places]
        self._used[places] = self._clock
        began = time.perf_counter()
        for low, high in _extents(slots, gap=0, most=max(1, _EXTENT_BYTES // self.row_bytes)):
            self._write(slots[low:high], self.memory[places[low:high]])
        self.counts.wait_s += time.perf_counter() - began

    def _settle(self, slots: Slots) -> Slots:
        """Give slots places, of those that were longest unused; returns them."""
        taken = self._victims(len(slots))
        before = self._holds[taken]
        self.where[before[before >= 0]] = -1
        self._holds[taken] = slots
        self.where[slots] = taken
        self._used[taken] = self._clock
        return taken

    def _victims(self, count: int) -> Slots:
        """The places that were longest unused, about; none that is pinned or of this moment."""
        for _ in range(2):
            still = self._used[self._oldest] == self._oldest_used
            fit = self._oldest[still]
            if len(fit) >= count:
                self._oldest, self._oldest_used = fit[count:], self._oldest_used[still][count:]
                return fit[:count]
            number = min(self.num_places, max(count, self.num_places // 8))
            order = np.argpartition(self._used, number - 1)[:number]
            order = order[self._used[order] < max(self._clock, 1)]
            self._oldest = order[np.argsort(self._used[order], kind="stable")]
            self._oldest_used = self._used[self._oldest]
        raise AssertionError(f"{count} places of {self.num_places} are wanted, {self._num_new} of which are new")

    def _read(self, slots: Slots) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
        """Ascending slots from the file: for parts `low` to `high` of them the rows, zeros for what cannot be read."""
        size = self.row_bytes
        for low, high in _extents(slots, gap=_GAP_BYTES // size, most=max(1, _EXTENT_BYTES // size)):
            first, last = int(slots[low]), int(slots[high - 1])
            rows = self._bounce[: (last - first + 1) * size]
            try:
                self._fill(rows, first * size)
            except OSError as error:
                rows[:] = 0
                self._lose(slots[low:high], f"cannot be read back: {system_reason(error)}")
            table = rows.reshape(-1, size)
            yield low, high, table if len(table) == high - low else table[slots[low:high] - first]

    def _fill(self, out: NDArray[np.uint8], offset: int) -> None:
        view = out.data
        while view:
            count = os.preadv(self.file_number, [view], offset)
            if count == 0:
                raise OSError("the file ends before the rows do")
            self.counts.reads += 1
            self.counts.bytes_read += count
            view, offset = view[count:], offset + count

    def _write(self, slots: Slots, rows: NDArray[np.uint8]) -> None:
        view, offset = rows.data.cast("B"), int(slots[0]) * self.row_bytes
        try:
            while view:
                count = os.pwrite(self.file_number, view, offset)
                self.counts.bytes_written += count
                view, offset = view[count:], offset + count
        except OSError as error:
            self._lose(slots, f"cannot be written: {system_reason(error)}")

    def _lose(self, slots: Slots, reason: str) -> None:
        self.failed.update(dict.fromkeys(slots.tolist(), reason))
        self._spoiled.extend(slots.tolist())


def _extents(slots: Slots, *, gap: int, most: int) -> Iterator[tuple[int, int]]:
    """Parts of ascending slots that lie side by side but for gaps of at most `gap`, and span at most `most` slots."""
    if not len(slots):
        return
    ends = [*(np.flatnonzero(np.diff(slots) > gap + 1) + 1).tolist(), len(slots)]
    low = 0
    for end in ends:
        while low < end:
            high = end
            if slots[end - 1] - slots[low] >= most:
                high = int(np.searchsorted(slots, slots[low] + most))
            yield low, high
            low = high
