"""Which level of the C++ kernels is used: by the processor, by the check of tiles, by the user; and what is said."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from indexshare import ops
from indexshare.config.environment import CPU_LEVELS
from indexshare.ops import native as native_room
from indexshare.ops import operations
from indexshare.ops.native import (
    LEVELS,
    Level,
    Native,
    best_level,
    limit_level,
    native,
    processor_features,
    usable_levels,
)
from indexshare.step import native_step

EVERYTHING = frozenset().union(*(level.needs for level in LEVELS))
GOOD = {level.name: Native(library=ctypes.CDLL(None), level=level.name, reason=level.name) for level in LEVELS}


@pytest.fixture(autouse=True)
def _choice_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limits and choices end with the test."""
    monkeypatch.setattr(native_room, "_highest", 0)
    yield
    monkeypatch.undo()
    native.cache_clear()


def choose(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Native]) -> Native:
    """What `native` says on a processor that has everything, when libraries come to `answers`."""
    monkeypatch.setattr(native_room, "processor_features", lambda: EVERYTHING)
    monkeypatch.setattr(native_room, "_find", lambda level: answers[level.name])
    return native.__wrapped__()


def test_by_what_the_processor_has() -> None:
    assert [level.name for level in usable_levels(EVERYTHING)] == ["amx", "avx512bf16"]
    for missing in ("amx_tile", "amx_bf16"):
        assert best_level(EVERYTHING - {missing}).name == "avx512bf16"
    assert best_level(EVERYTHING - {"avx512_bf16"}).name == "avx512"
    assert [level.name for level in usable_levels(frozenset())] == ["base"]


def test_tiles_that_work_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, GOOD) == GOOD["amx"]


@pytest.mark.parametrize(
    "reason",
    [
        "the system refuses the memory for tiles: Invalid argument",
        "the indexer in tiles chooses other keys than in vectors",
        "not built: g++ failed: error: unrecognized command-line option '-mamx-tile'",
    ],
)
def test_tiles_that_do_not_work_are_not_used_and_doctor_says_why(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    refused = Native(library=None, level="", reason=reason)
    found = choose(monkeypatch, GOOD | {"amx": refused})
    assert (found.library, found.level) == (GOOD["avx512bf16"].library, "avx512bf16")
    assert found.reason == f"avx512bf16; not amx: {reason}"
    for room in (operations, native_step):
        monkeypatch.setattr(room, "native", lambda: found)
    rows = {row["op"]: row for row in (*ops.explain(), native_step.explain())}
    assert rows["select_topk"] == {"op": "select_topk", "implementation": "cpu", "reason": found.reason}
    assert f"not amx: {reason}" in rows["decode step"]["reason"]


def test_when_nothing_works_both_reasons_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {name: Native(library=None, level="", reason=f"no {name}") for name in GOOD}
    assert choose(monkeypatch, answers) == Native(library=None, level="", reason="no avx512bf16; not amx: no amx")


class Checked:
    """Stands for a library: its check gives an answer."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer

    @property
    def indexshare_check_tiles(self) -> Any:
        def check() -> bytes | None:
            return self.answer

        return check


@pytest.mark.parametrize("answer", [None, b"the system refuses the memory for tiles: Invalid argument"])
def test_a_library_with_tiles_is_asked(monkeypatch: pytest.MonkeyPatch, answer: bytes | None) -> None:
    monkeypatch.setattr(native_room.ctypes, "CDLL", lambda path: Checked(answer))
    amx, vectors = LEVELS[0], LEVELS[1]
    assert native_room._load(Path("x"), vectors).level == "avx512bf16"
    found = native_room._load(Path("x"), amx)
    if answer is None:
        assert (found.level, found.reason) == ("amx", "C++ kernels for amx")
    else:
        assert found == Native(library=None, level="", reason=answer.decode())


@pytest.mark.slow
@pytest.mark.skipif("amx_tile" in processor_features(), reason="this processor has tiles")
@pytest.mark.skipif(not LEVELS[1].needs <= processor_features(), reason="cannot run the rest of such a library either")
def test_a_real_system_refuses_tiles_that_it_does_not_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The library for AMX, built and loaded here: the system's own answer, and the level below at work."""
    real = next(level for level in LEVELS if not level.tiles and level.needs <= processor_features())
    amx = Level(name="amx", needs=frozenset(), flags=LEVELS[0].flags, tiles=True)
    monkeypatch.setattr(native_room, "LEVELS", (amx, real))
    for name in ("package_directory", "cache_directory"):
        monkeypatch.setattr(native_room, name, lambda: tmp_path)
    found = native.__wrapped__()
    assert found.library is not None and found.level == real.name
    if "not built" not in found.reason:
        assert "not amx: the system refuses the memory for tiles" in found.reason


def test_a_user_may_name_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_room, "processor_features", lambda: EVERYTHING)
    limit_level("avx512bf16")
    assert [level.name for level in usable_levels(EVERYTHING)] == ["avx512bf16"]
    assert choose(monkeypatch, GOOD) == GOOD["avx512bf16"]
    limit_level("amx")
    assert choose(monkeypatch, GOOD) == GOOD["amx"]


def test_a_level_that_is_none_or_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_room, "processor_features", lambda: EVERYTHING - {"amx_tile"})
    with pytest.raises(ValueError, match="no level of the C\\+\\+ kernels is called 'sse'; there are amx, avx512bf16"):
        limit_level("sse")
    with pytest.raises(ValueError, match="this processor has no amx_tile, which level amx needs"):
        limit_level("amx")


def test_the_environment_knows_the_levels() -> None:
    assert tuple(level.name for level in LEVELS) == CPU_LEVELS


def test_installation_builds_what_may_be_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def build(directory: Path, level: Level) -> Path:
        if level.name in broken:
            raise OSError(f"{level.name} does not compile")
        return directory / level.name

    monkeypatch.setattr(native_room, "processor_features", lambda: EVERYTHING)
    monkeypatch.setattr(native_room, "build", build)
    broken: set[str] = set()
    assert native_room.install(tmp_path) == [tmp_path / "amx", tmp_path / "avx512bf16"]
    broken = {"amx"}
    assert native_room.install(tmp_path) == [tmp_path / "avx512bf16"]
    broken = {"avx512bf16"}
    with pytest.raises(OSError, match="avx512bf16 does not compile"):
        native_room.install(tmp_path)
