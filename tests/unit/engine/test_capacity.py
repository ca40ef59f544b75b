"""The default cache size: four contexts, within half of the memory that is free."""

from pathlib import Path

import pytest
import torch

from indexshare.config import preset
from indexshare.engine import capacity
from indexshare.engine.capacity import default_cache_tokens, free_memory
from indexshare.planner.memory import cache_bytes_per_token

CONFIG, CPU = preset("tiny"), torch.device("cpu")


def default(monkeypatch: pytest.MonkeyPatch, free: int, max_context: int = 1000) -> int:
    monkeypatch.setattr(capacity, "free_memory", lambda device: free)
    return default_cache_tokens(CONFIG, max_context, block_size=64, element_bytes=4, device=CPU)


def test_four_contexts_where_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default(monkeypatch, 1 << 40) == 4032  # 4,000 in whole blocks
    assert default(monkeypatch, 1 << 40, max_context=16) == 64


def test_half_of_the_free_memory_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    per_token = cache_bytes_per_token(CONFIG, 4)
    tokens = default(monkeypatch, per_token * 1000)
    assert tokens == 448  # 500 in whole blocks
    with pytest.raises(ValueError, match=r"a cache block of 64 tokens takes .* free some, or set cache_tokens"):
        default(monkeypatch, per_token * 100)


def test_free_memory_is_plausible() -> None:
    assert 1 << 20 < free_memory(CPU) < 1 << 50


def test_memory_files_are_read(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    7 kB\n", encoding="ascii")
    assert capacity._meminfo_available(meminfo) == 7 * 1024
    assert capacity._meminfo_available(tmp_path / "absent") is None
    assert capacity._control_group_room(tmp_path) is None
    (tmp_path / "memory.current").write_text("300\n", encoding="ascii")
    for limit, room in (("max", None), ("1000", 700), ("100", 0)):
        (tmp_path / "memory.max").write_text(limit + "\n", encoding="ascii")
        assert capacity._control_group_room(tmp_path) == room
