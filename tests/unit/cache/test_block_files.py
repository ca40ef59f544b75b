"""Blocks in files: whole and the right ones, or not taken, with a line that says why."""

import errno
import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from indexshare.cache import block_files as module
from indexshare.cache.block_files import ABOUT, NOTHING, SUFFIX, BlockFiles, Wanted, block_files, remove_blocks, wanted
from indexshare.cache.prefix import Saved

ROWS = bytes(range(256)) * 3


class Folder:
    """Files of a model in a folder, and what was said about them."""

    def __init__(self, path: Path, model: str = "m1", max_bytes: int = 1 << 20) -> None:
        self.said: list[str] = []
        self.path = path
        self.files = BlockFiles(path, model, {"model": "nano"}, max_bytes=max_bytes, explain=self.said.append)

    def keep(self, *blocks: list[int], rows: bytes = ROWS) -> list[tuple[Wanted, Saved]]:
        """Save a chain of blocks."""
        before, done = NOTHING, []
        for tokens in blocks:
            block = wanted(self.files.model, before, tokens)
            checksum = self.files.save(block, rows)
            assert checksum is not None
            before = Saved(block.name, checksum)
            done.append((block, before))
        return done

    def file(self, block: Wanted) -> Path:
        return self.path / self.files.model / f"{block.name}{SUFFIX}"

    def load(self, block: Wanted, num_bytes: int = len(ROWS)) -> bytes | None:
        found = self.files.load(block, num_bytes)
        return None if found is None else bytes(found[0])


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "prefixes")


def test_what_is_written_is_found_by_the_next_process(folder: Folder) -> None:
    (first, saved), (second, _) = folder.keep([1, 2], [3, 4])
    again = Folder(folder.path)
    assert again.load(first) == again.load(second) == ROWS
    assert again.files.load(first, len(ROWS))[1] == saved.checksum  # type: ignore[index]
    assert again.load(wanted("m1", saved, [3, 5])) is None and again.load(wanted("m1", NOTHING, [3, 4])) is None
    assert again.said == []
    assert json.loads((folder.path / "m1" / ABOUT).read_text())["model"] == "nano"
    assert {file.path for file in block_files(folder.path)} == {folder.file(first), folder.file(second)}
    assert len(first.head) % 64 == 0


@pytest.mark.parametrize("keep", [0, 1, 40, 63, 64, 100, -33, -32, -1])
def test_a_file_that_is_cut_off_is_a_miss(folder: Folder, keep: int) -> None:
    [(block, _)] = folder.keep([1, 2])
    file = folder.file(block)
    file.write_bytes(file.read_bytes()[:keep])
    assert folder.load(block) is None
    [line] = folder.said
    assert "damaged; the prompt is computed from there on, and the file replaced" in line and "\n" not in line
    folder.keep([1, 2])
    assert folder.load(block) == ROWS


@pytest.mark.parametrize("at", [3, 30, 70, 300, -40, -1])
def test_a_flipped_bit_is_a_miss(folder: Folder, at: int) -> None:
    [(block, _)] = folder.keep([1, 2])
    data = bytearray(folder.file(block).read_bytes())
    data[at] ^= 4
    folder.file(block).write_bytes(data)
    assert folder.load(block) is None
    assert len(folder.said) == 1


def test_foreign_and_stale_files_say_what_they_are(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, saved), (second, _) = folder.keep([1, 2], [3, 4])
    [(other, other_saved)] = folder.keep([5, 6])
    strange = Folder(folder.path, "m2")
    [(foreign, _)] = strange.keep([1, 2])
    monkeypatch.setattr(module, "FORMAT", 2)
    [(newer, _)] = strange.keep([1, 2])
    monkeypatch.undo()
    for data, line in (
        (folder.file(other).read_bytes(), "holds other tokens"),
        (strange.file(foreign).read_bytes(), "has format 2, this program reads 1"),
        (b"hello\n" + b"x" * 2000, "is not a file of cached tokens, or damaged"),
        (b'{"format": 1}\n' + b"x" * 2000, "is not a file of cached tokens, or damaged"),
    ):
        folder.said.clear()
        folder.file(first).write_bytes(data)
        assert folder.load(first) is None
        assert len(folder.said) == 1 and line in folder.said[0]
    strange = Folder(folder.path, "m2")
    [(foreign, _)] = strange.keep([1, 2])
    folder.file(first).write_bytes(strange.file(foreign).read_bytes())
    folder.said.clear()
    assert folder.load(first) is None and "belongs to another model" in folder.said[0]
    # The right tokens behind another beginning: the head names the file before by its contents.
    folder.said.clear()
    sought = wanted("m1", other_saved, [3, 4])
    folder.file(sought).write_bytes(folder.file(second).read_bytes())
    assert folder.load(sought) is None and "stands behind another beginning" in folder.said[0]
    assert newer.name and saved


def test_a_planted_hash_collision_is_caught(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks want the same file name; another chain's block never passes for one's own."""
    monkeypatch.setattr(module, "_name", lambda text: "same")
    [(mine, saved)] = folder.keep([1, 2], rows=b"a" * 8)
    [(theirs, theirs_saved)] = folder.keep([7, 8], rows=b"b" * 8)
    assert mine.name == theirs.name
    assert folder.load(mine, 8) is None and folder.load(theirs, 8) == b"b" * 8
    behind_theirs = wanted("m1", theirs_saved, [3, 4])
    assert folder.files.save(behind_theirs, b"c" * 8) is not None
    assert folder.load(wanted("m1", saved, [3, 4]), 8) is None, "the same name and tokens behind another beginning"
    assert folder.load(behind_theirs, 8) == b"c" * 8


def test_rows_of_another_size_are_refused(folder: Folder) -> None:
    [(block, _)] = folder.keep([1, 2])
    assert folder.load(block, len(ROWS) - 1) is None and "is damaged" in folder.said[0]


@pytest.mark.parametrize("failing", ["open", "replace"])
def test_a_full_disk_costs_nothing_but_the_entry(folder: Folder, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    [(block, _)] = folder.keep([1, 2])

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((Path, "open") if failing == "open" else (os, "replace")), full)
    assert folder.files.save(wanted("m1", NOTHING, [8, 8]), ROWS) is None
    assert folder.files.save(wanted("m1", NOTHING, [9, 9]), ROWS) is None
    monkeypatch.undo()
    assert folder.said == [
        f"{folder.path / 'm1'} cannot be written: no space left on device; prompts are not kept there"
    ]
    assert sorted(os.listdir(folder.path / "m1")) == sorted([ABOUT, f"{block.name}{SUFFIX}"])
    assert folder.load(block) == ROWS


def test_a_folder_that_cannot_be_made_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    folder = Folder(tmp_path / "file" / "inner")
    assert folder.files.save(wanted("m1", NOTHING, [1]), ROWS) is None
    assert folder.load(wanted("m1", NOTHING, [1])) is None
    assert any("cannot be written" in line for line in folder.said)


def test_what_was_longest_unused_makes_room_and_ends_go_before_beginnings(tmp_path: Path) -> None:
    folder = Folder(tmp_path, max_bytes=5 * 1000)
    old = folder.keep([1, 1], [1, 2], [1, 3])
    folder.files.touch([saved.name for _, saved in old])
    time.sleep(0.01)
    new = folder.keep([2, 1], [2, 2])
    folder.files.touch([saved.name for _, saved in new])
    folder.files.prune()
    assert len(list(block_files(tmp_path))) == 5
    tight = Folder(tmp_path, max_bytes=3 * 1000)
    tight.files.prune()
    assert {file.path for file in block_files(tmp_path)} == {folder.file(b) for b, _ in (old[0], *new)}
    tight.files.touch([old[0][1].name])
    Folder(tmp_path, "m2", max_bytes=1000).files.prune()
    assert [file.path for file in block_files(tmp_path)] == [folder.file(old[0][0])]


def test_clearing_leaves_what_is_not_ours(folder: Folder) -> None:
    folder.keep([1, 2])
    (folder.path / "m2").mkdir()
    (folder.path / "m2" / "notes.txt").write_text("mine")
    left = folder.path / "m1" / f".x.writing-1{SUFFIX}"
    left.write_bytes(b"")
    os.utime(left, (1, 1))
    remove_blocks(folder.path)
    assert sorted(os.listdir(folder.path)) == ["m2"]
    remove_blocks(folder.path / "nowhere")


def work(path: Path, number: int) -> None:
    """Write and read the same chains as another process, and make room all the time."""
    folder = Folder(path, max_bytes=12 * 1000)
    for turn in range(40):
        chain = [[turn % 3, i] for i in range(5)]
        before = NOTHING
        for tokens in chain:
            block = wanted("m1", before, tokens)
            found = folder.files.load(block, len(ROWS))
            rows = ROWS if found is None else bytes(found[0])
            assert rows == ROWS
            checksum = folder.files.save(block, ROWS) if found is None else found[1]
            assert checksum is not None
            before = Saved(block.name, checksum)
        if turn % 4 == number:
            folder.files.prune()
    assert folder.said == []


def test_two_processes_in_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(tmp_path, n)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert {entry.suffix for entry in (tmp_path / "m1").iterdir()} == {SUFFIX, ".json"}
