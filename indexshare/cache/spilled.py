"""The paged cache with most of its rows in files: index keys stay in memory, what they choose is fetched.

Streams other than index keys belong to the group of their layer: a Full layer and those that share its selection. When
the Full layer has chosen, the rows of all of them are brought into memory at once (`announce`), and none has to wait.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indexshare.cache.blocks import BlockTable
from indexshare.cache.codecs import Codec, Pool
from indexshare.cache.paged import PagedCache, PagedView, PoolKey
from indexshare.cache.spill import Group, Slots, SpillCounts
from indexshare.config import ModelConfig
from indexshare.config.layers import INDEX_KEYS, Stream
from indexshare.ops.coded.rows import Rows


class SpilledCache(PagedCache):
    """A cache of which memory holds the index keys of all tokens, and the other rows of `places` tokens.

    Args:
        config, num_blocks, block_size, dtype, draft, codecs: as in `PagedCache`.
        places: tokens whose rows are in memory.
        folder: for the files, which have no names in it.
        by_layer: fetch for each layer alone; for comparison.

    Raises:
        ValueError: as in `PagedCache`, or the folder cannot have a file.
    """

    def __init__(
        self, config: ModelConfig, num_blocks: int, block_size: int = 64, dtype: torch.dtype = torch.float32,
        draft: bool = False, codecs: str | Mapping[str, str] | None = None,
        *, places: int, folder: Path, by_layer: bool = False,
    ) -> None:  # fmt: skip
        self._places, self._folder, self.by_layer = places, folder, by_layer
        self.counts = SpillCounts()
        self.groups: dict[int, Group] = {}  # by layer; layers that share one have the same object
        super().__init__(config, num_blocks, block_size, dtype, "cpu", draft, codecs)

    def _reserved(self, streams: Mapping[int, Sequence[Stream]], names: Mapping[str, str]) -> dict[PoolKey, Pool]:
        pools, members = dict[PoolKey, Pool](), dict[int, list[tuple[PoolKey, Codec]]]()
        for layer, of_layer in streams.items():
            for stream in of_layer:
                codec = self._codec(stream, names)
                if stream.name == INDEX_KEYS:
                    pools[layer, stream.name] = self._pool(codec)
                else:
                    members.setdefault(self._leader(layer), []).append(((layer, stream.name), codec))
        for of_group in members.values():
            pools |= self._spilled(of_group)
        return pools

    def _leader(self, layer: int) -> int:
        """The layer whose selection a layer reads."""
        if self.by_layer or layer == self.config.num_hidden_layers:
            return layer
        return self.config.share_plan.source(layer)

    def _spilled(self, members: list[tuple[PoolKey, Codec]]) -> dict[PoolKey, Pool]:
        """The pools of a group, whose memory is one table of bytes."""
        ends = np.cumsum([codec.row_bytes for _, codec in members]).tolist()
        size = -(-ends[-1] // 16) * 16  # every row begins where any type may
        try:
            group = Group(self._slots, self._places, size, self._folder, self.counts)
        except OSError as error:
            raise ValueError(
                f"spill: {self._folder} cannot have a file: {error.strerror}; name another folder"
            ) from error
        memory, pools = torch.from_numpy(group.memory), dict[PoolKey, Pool]()
        for (key, codec), end in zip(members, ends, strict=True):
            kept, first = codec.stored[0], end - codec.row_bytes
            pools[key] = SpilledPool(memory[:, first:end].view(kept), codec, group, first)
            self.groups[key[0]] = group
        return pools

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, in memory and files: `num_tokens * planner.memory.cache_bytes_per_token`."""
        return self._slots * sum(pool.codec.row_bytes for pool in self.pools.values())

    @property
    def memory_bytes(self) -> int:
        """Bytes of the rows that are in memory."""
        groups = {id(group): group.memory.nbytes for group in self.groups.values()}
        return sum(groups.values()) + sum(p.stored.nbytes for (_, name), p in self.pools.items() if name == INDEX_KEYS)

    def view(self, tables: Sequence[BlockTable | Sequence[int]], spans: Sequence[tuple[int, int]]) -> PagedView:
        """As in `PagedCache`; what earlier steps made is written into the files first."""
        self._write_new()
        return SpilledView(self, [t if isinstance(t, BlockTable) else BlockTable(t) for t in tables], spans)

    def flush(self) -> dict[int, str]:
        """As in `PagedCache`."""
        self._write_new()
        lost = dict[int, str]()
        for group in self.groups.values():
            for slot, reason in group.failed.items():
                lost[slot // self.block_size] = f"rows of the cache in {self._folder} {reason}"
            group.failed.clear()
        return lost

    def _write_new(self) -> None:
        for group in self.groups.values():
            group.flush()

    def count(self) -> SpillCounts:
        """A copy of what was counted so far."""
        return copy(self.counts)

    def read_block(self, block: int) -> bytes:
        """As in `PagedCache`, from memory and files."""
        slots = np.arange(block * self.block_size, (block + 1) * self.block_size)
        parts = []
        for key in sorted(self.pools):
            pool = self.pools[key]
            rows = pool.bytes_of(slots) if isinstance(pool, SpilledPool) else _bytes(pool.stored[self._rows_of(block)])
            parts.append(rows.tobytes())
        return b"".join(parts)

    def write_block(self, block: int, data: bytearray | memoryview) -> None:
        """As in `PagedCache`, into the files."""
        if len(data) != self.block_bytes:
            raise ValueError(f"{len(data)} bytes for a block of {self.block_bytes}")
        slots, at = np.arange(block * self.block_size, (block + 1) * self.block_size), 0
        for key in sorted(self.pools):
            pool = self.pools[key]
            size = self.block_size * pool.codec.row_bytes
            rows = np.frombuffer(data, np.uint8, size, at).reshape(self.block_size, -1)
            if isinstance(pool, SpilledPool):
                pool.group.memory[pool.group.admit(slots), pool.first : pool.first + rows.shape[1]] = rows
            else:
                _bytes(pool.stored[self._rows_of(block)])[:] = rows
            at += size
        self._write_new()


def _bytes(stored: Tensor) -> Any:
    return stored.view(torch.uint8).numpy()


@dataclass(frozen=True)
class SpilledPool(Pool):
    """Rows of one stream of one layer of a group: `stored` `[places, count]` are those in memory.

    Attributes:
        group: theirs and other layers'.
        first: where the row's bytes begin in the group's.
    """

    group: Group
    first: int

    def write(self, slots: Tensor, rows: Tensor) -> None:
        """Store rows `[N, W]` at slots int64 `[N]`, each once, in memory; `SpilledCache.flush` writes the file."""
        super().write(torch.from_numpy(self.group.admit(slots.numpy())), rows)

    def run(self, first: int, count: int) -> Rows:
        """As in `Pool`: a copy."""
        return self.taken(np.arange(first, first + count))

    def blocks(self, ids: Tensor, size: int, count: int) -> Rows:
        """As in `Pool`."""
        return self.taken((ids[:, None] * size + torch.arange(size)).flatten()[:count].numpy())

    def at(self, slots: Tensor) -> tuple[Rows, Tensor]:
        """As in `Pool`: the rows in memory, or a copy of those in question where memory does not hold them all."""
        wanted = slots.numpy()
        named = _named(wanted, len(self.group.where))
        if self.group.fetch(named, again=True):
            rows, places = self.stored, self.group.places(wanted)
        else:  # more than memory holds: this layer's rows alone
            rows, places = self._elements(named), _ranks(wanted, named, len(self.group.where))
        found = torch.from_numpy(places)
        if self.codec.is_plain or self.codec.layout is not None:
            return self._rows(rows), found
        used, again = found.clamp_min(0).unique(return_inverse=True)
        return self.codec.decode(rows[used]), again.masked_fill(found < 0, -1)

    def taken(self, slots: Slots) -> Rows:
        """Rows `[n, W]` of slots, each once, in their order: a copy."""
        order = np.argsort(slots, kind="stable")
        rows = self._elements(slots[order])
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return self._rows(rows[torch.from_numpy(back)])

    def bytes_of(self, slots: Slots) -> Any:
        """Stored bytes of ascending slots, `[n, row bytes]`."""
        return self.group.columns(slots, self.first, self.first + self.codec.row_bytes)

    def _elements(self, slots: Slots) -> Tensor:
        return torch.from_numpy(self.bytes_of(slots)).view(self.codec.stored[0])


class SpilledView(PagedView):
    """A packed batch on a `SpilledCache`."""

    cache: SpilledCache

    def announce(self, layer: int, slots: Tensor) -> None:
        """Bring the rows of all layers that share the choice into memory."""
        group = self.cache.groups[layer]
        group.fetch(_named(slots.numpy(), len(group.where)))


def _named(slots: Slots, count: int) -> Slots:
    """All slots that occur, ascending; -1 stands for none."""
    flat = slots.ravel()
    if flat.size < count // 64:
        found = np.unique(flat)
        return found[1:] if found.size and found[0] < 0 else found
    marks = np.zeros(count + 1, np.bool_)  # the last one is that of -1
    marks[flat] = True
    return np.flatnonzero(marks[:count])


def _ranks(slots: Slots, named: Slots, count: int) -> Slots:
    """Of each slot, its number among those that occur."""
    ranks = np.full(count + 1, -1, np.int64)
    ranks[named] = np.arange(len(named))
    found: Slots = ranks[slots]
    return found
