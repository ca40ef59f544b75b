"""How large a cache to reserve when the user does not say."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from indexshare.config import ModelConfig
from indexshare.planner.memory import RowBytes, cache_bytes_per_token

_SEQUENCES = 4  # full-length sequences to have room for
_SHARE_OF_FREE_MEMORY = 0.5


def default_cache_tokens(
    config: ModelConfig, max_context: int, *, block_size: int, element_bytes: int, device: torch.device,
    draft: bool = False, row_bytes: RowBytes | None = None,
) -> int:  # fmt: skip
    """Tokens to reserve: four full contexts, within half of the memory that is free; rows as in `cache_bytes`.

    Raises:
        ValueError: not even one block fits.
    """
    per_token = cache_bytes_per_token(config, element_bytes, draft=draft, row_bytes=row_bytes)
    affordable = int(_SHARE_OF_FREE_MEMORY * free_memory(device)) // per_token // block_size
    if affordable < 1:
        raise ValueError(
            f"a cache block of {block_size} tokens takes {per_token * block_size:,} bytes, more than half of "
            f"the {free_memory(device):,} bytes free on {device}; free some, or set cache_tokens yourself"
        )
    wanted = -(-_SEQUENCES * max_context // block_size)
    return min(wanted, affordable) * block_size


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a device without pushing anything out."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _meminfo_available(Path("/proc/meminfo"))
    if free is None:  # not Linux: all of the physical memory is the best there is to go by
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _control_group_room(Path("/sys/fs/cgroup"))
    return free if limit is None else min(free, limit)


def _meminfo_available(path: Path) -> int | None:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_group_room(folder: Path) -> int | None:
    """Bytes left under a container's memory limit (control groups version 2), None without a limit."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used, 0)
