"""The cache that a user's settings ask for: how many tokens it holds, what is in memory, and where the rest lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from indexshare.cache.codecs import row_bytes
from indexshare.cache.paged import PagedCache
from indexshare.cache.spilled import SpilledCache
from indexshare.config import ModelConfig
from indexshare.config.layers import INDEX_KEYS, layer_streams
from indexshare.engine.capacity import default_cache_tokens
from indexshare.planner.memory import cache_bytes
from indexshare.text.files import system_reason

_SEQUENCES = (
    4  # full-length sequences that a spilled cache has room for, if their index keys take at most half of memory
)


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """What is asked of the cache.

    Attributes:
        tokens: that it holds, None for as many as the memory has room for.
        memory: most bytes of it in memory, None for no limit.
        folder: for what does not fit, None for nothing.
        codecs: by stream.
        draft: whether the draft layer has rows in it.
        chunk: tokens that a step computes at most.
        rows: most rows of a step for which all that they name is in memory at a time.
        limit: contexts up to this length are attended in full.
    """

    tokens: int | None
    memory: int | None
    folder: Path | None
    codecs: Mapping[str, str]
    draft: bool
    chunk: int
    rows: int
    limit: int


def build_cache(
    config: ModelConfig, settings: StorageSettings, max_context: int, block_size: int, dtype: torch.dtype,
    device: torch.device,
) -> PagedCache:  # fmt: skip
    """Reserve the cache.

    Raises:
        ValueError: there is too little memory, or the folder cannot be used.
    """
    tokens, codecs, draft = settings.tokens, settings.codecs, settings.draft
    if settings.folder is not None and settings.memory is None:
        raise ValueError(f"spill is {str(settings.folder)!r}, but cache_memory is not set; say how much memory to use")
    if settings.memory is None:
        if tokens is None:
            tokens = default_cache_tokens(
                config, max_context, block_size=block_size, element_bytes=dtype.itemsize, device=device,
                draft=draft, row_bytes=row_bytes(codecs, dtype),
            )  # fmt: skip
        return PagedCache(config, -(-tokens // block_size), block_size, dtype, device, draft, codecs)
    sizes = _Sizes.of(config, settings, dtype)
    fits = settings.memory // (sizes.keys + sizes.rows) // block_size * block_size
    if settings.folder is None:
        blocks = _blocks_in_memory(settings, fits, block_size)
        return PagedCache(config, blocks, block_size, dtype, device, draft, codecs)
    if device.type != "cpu" or not config.selects:
        why = f"the model is on {device}" if device.type != "cpu" else "the model attends to every token"
        raise ValueError(f"spill is {str(settings.folder)!r}, but {why}; leave it out")
    tokens = _spilled_tokens(sizes, settings, max_context) if tokens is None else tokens
    blocks = -(-tokens // block_size)
    if blocks * block_size <= fits:
        return PagedCache(config, blocks, block_size, dtype, device, draft, codecs)
    places = sizes.places(settings, blocks * block_size)
    _make(settings.folder)
    return SpilledCache(config, blocks, block_size, dtype, draft, codecs, places=places, folder=settings.folder)


@dataclass(frozen=True)
class _Sizes:
    """Bytes of a token: index keys, all other rows, and those of one layer."""

    keys: int
    rows: int
    layer: int

    @classmethod
    def of(cls, config: ModelConfig, settings: StorageSettings, dtype: torch.dtype) -> _Sizes:
        of_stream = row_bytes(settings.codecs, dtype)
        streams = cache_bytes(config, draft=settings.draft, row_bytes=of_stream).streams
        keys = streams.get(INDEX_KEYS, 0)
        layer = sum(of_stream(s) for s in layer_streams(config, 0) if s.name != INDEX_KEYS)
        return cls(keys, sum(streams.values()) - keys, layer)

    def places(self, settings: StorageSettings, tokens: int) -> int:
        """Tokens whose rows are in memory beside all index keys, and one layer's rows of a prompt's whole past."""
        assert settings.memory is not None
        places = (settings.memory - tokens * (self.keys + self.layer)) // self.rows
        least = settings.rows * settings.limit + 2 * settings.chunk
        if places < least:
            needed = tokens * (self.keys + self.layer) + least * self.rows
            raise ValueError(
                f"cache_memory is {settings.memory:,} bytes, and a cache of {tokens:,} tokens needs at least "
                f"{needed:,} for index keys, a layer of the past, and what a step names; raise it, or lower "
                "cache_tokens or prefill_chunk"
            )
        return places


def _spilled_tokens(sizes: _Sizes, settings: StorageSettings, max_context: int) -> int:
    assert settings.memory is not None
    return max(1, min(_SEQUENCES * max_context, settings.memory // 2 // (sizes.keys + sizes.layer)))


def _blocks_in_memory(settings: StorageSettings, fits: int, block_size: int) -> int:
    if fits < max(settings.tokens or 1, block_size):
        asked = f"{settings.tokens:,} tokens" if settings.tokens else f"a block of {block_size} tokens"
        raise ValueError(
            f"cache_memory is {settings.memory:,} bytes, which hold {fits:,} tokens and not {asked}; raise it, or name "
            "a folder for the rest with spill"
        )
    return -(-(settings.tokens or fits) // block_size)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"spill is {str(folder)!r}, which cannot be a folder: {system_reason(error)}") from error
