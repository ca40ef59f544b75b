"""The paged cache: the streams of every layer (`config.layers`), in blocks that sequences own.

Shape letters: N packed rows of a batch, T_i tokens of sequence i, W width of a stream. A slot is one row of a pool;
block b holds slots `b * block_size` to `(b + 1) * block_size - 1` of every stream of every layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from indexshare.cache.blocks import BlockTable
from indexshare.cache.codecs import Codec, PlainCodec, Pool, make_codec
from indexshare.cache.spill import SpillCounts
from indexshare.cache.view import BatchView, Span, pack_spans
from indexshare.config import ModelConfig
from indexshare.config.layers import Stream, layer_streams
from indexshare.ops.coded.rows import Rows

PoolKey = tuple[int, str]  # layer and stream


class PagedCache:
    """Storage for `num_blocks` blocks of past tokens; who owns which block is the allocator's business.

    On a CPU the pools are reserved, not filled: the operating system hands out a page when it is first
    written, so a short prompt in a large cache takes little memory. Nothing is read before it is written.

    Args:
        config: sizes and share plan of the model.
        num_blocks: blocks in each pool.
        block_size: tokens per block.
        dtype: floating type of the rows that are read, the type the model computes in.
        device: where the pools live.
        draft: also keep the streams of the draft layer, at index `config.num_hidden_layers`.
        codecs: how rows are stored, a name in `cache.codecs` for all streams or one by stream name; by default, and
            for streams not named, as they are, in `dtype`.

    Raises:
        ValueError: no blocks, a type that is not floating, a draft layer that the model lacks, an unknown codec or
            stream, or sizes that the device cannot hold.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int = 64,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        draft: bool = False,
        codecs: str | Mapping[str, str] | None = None,
    ) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"num_blocks={num_blocks}, block_size={block_size}: expected at least one block of one slot"
            )
        if not dtype.is_floating_point:
            raise ValueError(f"dtype is {dtype}; expected a floating type such as torch.bfloat16")
        if draft and not config.num_nextn_predict_layers:
            raise ValueError("draft=True, but the model has no draft layer (num_nextn_predict_layers is 0)")
        self.config = config
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.dtype = dtype
        self.device = torch.device(device)
        self.has_draft_layer = draft
        self._slots = num_blocks * block_size
        streams = {layer: layer_streams(config, layer) for layer in range(config.num_hidden_layers + draft)}
        names = _codec_names({s.name for of_layer in streams.values() for s in of_layer}, codecs)
        self.pools = self._reserved(streams, names)  # all pools by layer and stream
        # Whether kernels can read and write every pool in place.
        self.in_place = all(pool.codec.is_plain or pool.codec.layout is not None for pool in self.pools.values())
        self._tables: WeakKeyDictionary[BlockTable, Tensor] = WeakKeyDictionary()

    def _reserved(self, streams: Mapping[int, Sequence[Stream]], names: Mapping[str, str]) -> dict[PoolKey, Pool]:
        return {
            (layer, stream.name): self._pool(self._codec(stream, names))
            for layer, of_layer in streams.items()
            for stream in of_layer
        }

    def _codec(self, stream: Stream, names: Mapping[str, str]) -> Codec:
        name = names.get(stream.name)
        plain = PlainCodec(stream, self.dtype, self.dtype)
        return plain if name is None else make_codec(name, stream, self.dtype)

    def _pool(self, codec: Codec) -> Pool:
        kept, count = codec.stored
        try:
            return Pool(torch.empty(self._slots, count, dtype=kept, device=self.device), codec)
        except (RuntimeError, TypeError) as error:  # TypeError: beyond the numbers that torch counts with
            raise ValueError(
                f"cannot reserve a cache of {self._slots} tokens on {self.device}: "
                f"{str(error).splitlines()[0]}; make the cache smaller"
            ) from error

    def flush(self) -> dict[int, str]:
        """To be called when a step is over: blocks whose rows were lost since the last time, and why."""
        return {}

    def count(self) -> SpillCounts | None:
        """What was needed and read so far, None where all rows are in memory."""
        return None

    @property
    def num_tokens(self) -> int:
        """Tokens the whole cache holds."""
        return self._slots

    @property
    def nbytes(self) -> int:
        """Bytes of all pools: `num_tokens * planner.memory.cache_bytes_per_token`."""
        return sum(pool.stored.nbytes for pool in self.pools.values())

    def pool(self, layer: int, stream: str) -> Pool:
        """The rows `[slots, W]` of a stream of a layer.

        Raises:
            ValueError: the layer keeps no such stream.
        """
        pool = self.pools.get((layer, stream))
        if pool is None:
            layers = sorted(number for number, name in self.pools if name == stream)
            what = stream.replace("_", " ")
            raise ValueError(f"layer {layer} keeps no {what} in this cache; layers with {what}: {layers}")
        return pool

    def view(self, tables: Sequence[BlockTable | Sequence[int]], spans: Sequence[tuple[int, int]]) -> PagedView:
        """What a forward pass over a packed batch sees.

        Args:
            tables: the blocks of each sequence in order; they must cover its past and new tokens. A table
                kept from step to step costs nothing to read again; a list is scanned.
            spans: (past, length) of each sequence.

        Raises:
            ValueError: a table is too short or names a block that does not exist.
        """
        return PagedView(self, [t if isinstance(t, BlockTable) else BlockTable(t) for t in tables], spans)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block in all pools."""
        return self.nbytes // self.num_blocks

    def read_block(self, block: int) -> bytes:
        """All that is stored in a block, pool by pool in order of layer and stream."""
        rows = (self.pools[key].stored[self._rows_of(block)] for key in sorted(self.pools))
        return b"".join(part.cpu().contiguous().view(torch.uint8).numpy().tobytes() for part in rows)

    def write_block(self, block: int, data: bytearray | memoryview) -> None:
        """Store what `read_block` gave, of this block or another one.

        Raises:
            ValueError: the data has another size than a block.
        """
        if len(data) != self.block_bytes:
            raise ValueError(f"{len(data)} bytes for a block of {self.block_bytes}")
        at = 0
        for key in sorted(self.pools):
            rows = self.pools[key].stored[self._rows_of(block)]
            part = torch.frombuffer(data, dtype=torch.uint8, count=rows.nbytes, offset=at)
            rows.copy_(part.view(rows.dtype).view(rows.shape))
            at += rows.nbytes

    def _rows_of(self, block: int) -> slice:
        return slice(block * self.block_size, (block + 1) * self.block_size)

    def block_ids(self, table: BlockTable) -> Tensor:
        """The ids of a table as int64 `[len(table)]` on the cache's device, kept from step to step."""
        kept = self._tables.get(table)
        length = len(table)
        known = 0 if kept is None else int(kept.shape[0])
        if kept is None or known < length:
            # One more block every `block_size` tokens: appending by copy is rare and short.
            new = torch.tensor(table.ids[known:], dtype=torch.int64, device=self.device)
            kept = new if kept is None else torch.cat([kept, new])
            self._tables[table] = kept
        return kept


class PagedView(BatchView):
    """A packed batch on a `PagedCache`. Sequences whose blocks are one run are read without a copy.

    `written` int64 `[N]` are the slots of this batch's rows.
    """

    def __init__(self, cache: PagedCache, tables: Sequence[BlockTable], sizes: Sequence[tuple[int, int]]) -> None:
        if len(tables) != len(sizes):
            raise ValueError(f"{len(tables)} block tables for {len(sizes)} sequences; expected one each")
        self.cache = cache
        self.spans: tuple[Span, ...] = pack_spans(sizes)
        self._block_tables = list(tables)
        for number, (table, span) in enumerate(zip(tables, self.spans, strict=True)):
            if len(table) * cache.block_size < span.total:
                raise ValueError(
                    f"sequence {number} has {span.total} tokens, but its {len(table)} blocks hold "
                    f"{len(table) * cache.block_size}; allocate before computing"
                )
            # Ids come from the allocator, so the last one is checked, not the whole table at every step.
            if not 0 <= table.ids[-1] < cache.num_blocks:
                raise ValueError(f"block {table.ids[-1]} does not exist: the cache has {cache.num_blocks} blocks")
        self.positions, self.written = self._rows()

    def _rows(self) -> tuple[Tensor, Tensor]:
        """Positions and slots of this batch's rows, both int64 [N]; one tensor for all rows of length 1."""
        device, size = self.cache.device, self.cache.block_size
        if all(span.length == 1 for span in self.spans):  # a decode step: no tensor work per sequence
            past = [span.past for span in self.spans]
            pairs = zip(self._block_tables, past, strict=True)
            slots = [table.ids[p // size] * size + p % size for table, p in pairs]
            both = torch.tensor([past, slots], dtype=torch.int64, device=device)
            return both[0], both[1]
        positions = [torch.arange(span.past, span.total, device=device) for span in self.spans]
        written = [self.slots(i, rows) for i, rows in enumerate(positions)]
        return torch.cat(positions), torch.cat(written)

    def block_ids(self, sequence: int) -> Tensor:
        """Ids of the blocks of one sequence, int64, in order."""
        return self.cache.block_ids(self._block_tables[sequence])

    def write(self, layer: int, stream: str, rows: Tensor) -> None:
        """Store rows `[N, W]` at `written`, as the stream's codec has them."""
        self.cache.pool(layer, stream).write(self.written, rows)

    def read(self, layer: int, stream: str, sequence: int) -> Tensor:
        """Rows `[T_i, W]`; a view when the sequence's blocks are one run and the codec is plain, else a copy."""
        rows = self.stored(layer, stream, sequence)
        return rows if isinstance(rows, Tensor) else rows[:]

    def stored(self, layer: int, stream: str, sequence: int) -> Rows:
        """The same rows as they lie: the pool's own memory when the blocks are one run."""
        pool = self.cache.pool(layer, stream)
        table, size = self._block_tables[sequence], self.cache.block_size
        total = self.spans[sequence].total
        if table.is_run:
            return pool.run(table.ids[0] * size, total)
        return pool.blocks(self.cache.block_ids(table)[: -(-total // size)], size, total)

    def pool(self, layer: int, stream: str) -> Pool:
        """The cache's pool."""
        return self.cache.pool(layer, stream)

    def slots(self, sequence: int, positions: Tensor) -> Tensor:
        """Pool rows of `positions` (int64, any shape) of one sequence."""
        table, size = self._block_tables[sequence], self.cache.block_size
        if table.is_run:
            first = table.ids[0] * size
            return positions + first if first else positions
        block = torch.div(positions, size, rounding_mode="floor")
        # slot = (id of the block) * size + (position within the block)
        return positions + (self.cache.block_ids(table)[block] - block) * size


def _codec_names(streams: set[str], codecs: str | Mapping[str, str] | None) -> dict[str, str]:
    """Codec by stream; streams that keep their rows as they are do not occur."""
    if codecs is None:
        return {}
    if isinstance(codecs, str):
        return dict.fromkeys(streams, codecs)
    for name in codecs:
        if name not in streams:
            raise ValueError(f"codecs names the stream {name!r}; this model's streams are {', '.join(sorted(streams))}")
    return dict(codecs)
