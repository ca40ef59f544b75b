"""Blocks of prompts in files, for the next process: written whole or not at all, checked when read, never trusted.

    FOLDER/MODEL/about.json     what the model is, for people
    FOLDER/MODEL/NAME.block     one block

MODEL names everything that the rows depend on beside the tokens, NAME is a hash of the tokens from the first to the
block's last. A file begins with its head, a line of JSON that says the model, the block's own token ids, and the
checksum of the file of the block before; then the rows follow, and the checksum of all that. A reader knows the head
that it wants and takes a file that begins with exactly that. Token ids are so compared one by one along the whole chain
of files, and the name serves to find a file, not to believe it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from indexshare.cache.prefix import Saved
from indexshare.text.files import replacing, system_reason

FORMAT = 1
SUFFIX = ".block"
NOTHING = Saved("", b"")  # what comes before the first block
ABOUT = "about.json"
_CHECKSUM = 32  # bytes
_ALIGN = 64
_STALE_S = 3600.0  # a temporary file this old was left behind by a process that was killed
_one_at_a_time = threading.Lock()


def checksum(*parts: bytes | bytearray | memoryview) -> bytes:
    """Of all parts together."""
    digest = blake2b(digest_size=_CHECKSUM)
    for part in parts:
        digest.update(part)
    return digest.digest()


@dataclass(frozen=True)
class Wanted:
    """A block that a sequence needs next: its file's name, and the head which that file must have."""

    name: str
    head: bytes


def wanted(model: str, before: Saved, tokens: Sequence[int]) -> Wanted:
    """The block of `tokens` that follows another one.

    Args:
        model: the folder's name for the model.
        before: the file of the block before, `NOTHING` for the first.
        tokens: ids of the block.
    """
    head = {"format": FORMAT, "model": model, "behind": before.checksum.hex(), "tokens": list(tokens)}
    text = json.dumps(head, separators=(",", ":"))
    padding = " " * (-(len(text) + 1) % _ALIGN)  # the rows begin where every type may begin
    return Wanted(_name(f"{model} {before.name} {head['tokens']}"), f"{text}{padding}\n".encode())


def _name(text: str) -> str:
    return blake2b(text.encode(), digest_size=20).hexdigest()


class BlockFiles:
    """The blocks of one model in a folder that several processes may use at a time.

    Args:
        folder: of all models; made when the first block is written.
        model: name of what the rows depend on, as a part of a file's name.
        about: what to say of the model to people, plain values.
        max_bytes: of all models together; beyond them the files that were longest unused are removed.
        explain: told, in a line, why a file or the folder cannot be used.
    """

    def __init__(
        self, folder: Path, model: str, about: dict[str, Any], *, max_bytes: int, explain: Callable[[str], None]
    ) -> None:
        self.folder, self.model = folder, model
        self._about, self._max_bytes, self._explain = about, max_bytes, explain
        self._writable = True

    def load(self, block: Wanted, num_bytes: int) -> tuple[memoryview, bytes] | None:
        """Rows, `num_bytes` of them, and checksum of a block; None without a file that is whole and the right one."""
        path = self._path(block)
        try:
            with path.open("rb") as file:
                data = bytearray(os.fstat(file.fileno()).st_size)
                data = data[: file.readinto(data)]
        except FileNotFoundError:
            return None
        except OSError as error:
            self._explain(f"{path} cannot be read: {system_reason(error)}; the prompt is computed from there on")
            return None
        whole = memoryview(data)
        rows, said = whole[len(block.head) : -_CHECKSUM], bytes(whole[-_CHECKSUM:])
        fault = _fault(data, block, self.model)
        if fault is None and (len(rows) != num_bytes or checksum(whole[:-_CHECKSUM]) != said):
            fault = "is damaged"
        if fault is not None:
            self._explain(f"{path} {fault}; the prompt is computed from there on, and the file replaced")
            return None
        return rows, said

    def save(self, block: Wanted, rows: bytes) -> bytes | None:
        """Write a block; its checksum, or None when the folder cannot be written: then nothing more is tried."""
        if not self._writable:
            return None
        path, own = self._path(block), checksum(block.head, rows)
        try:
            with _one_at_a_time:  # temporary names are those of processes
                self._begin_folder()
                with replacing(path) as temporary, temporary.open("wb") as file:
                    file.writelines((block.head, rows, own))
        except OSError as error:
            self._writable = False
            self._explain(f"{path.parent} cannot be written: {system_reason(error)}; prompts are not kept there")
            return None
        return own

    def touch(self, names: Sequence[str]) -> None:
        """Say that the blocks of a sequence are in use: those at its end are then the first to be removed."""
        now = time.time_ns()
        for i, name in enumerate(names):
            at = now - 1000 * i
            with contextlib.suppress(OSError):
                os.utime(self.folder / self.model / f"{name}{SUFFIX}", ns=(at, at))

    def prune(self) -> None:
        """Remove what was longest unused until all models' files take at most `max_bytes`."""
        found = sorted(block_files(self.folder), key=lambda file: file.used_ns)
        total = sum(file.size for file in found)
        for file in found:
            if total <= self._max_bytes:
                break
            total -= file.size
            with contextlib.suppress(OSError):
                file.path.unlink()

    def _path(self, block: Wanted) -> Path:
        return self.folder / self.model / f"{block.name}{SUFFIX}"

    def _begin_folder(self) -> None:
        folder = self.folder / self.model
        if not (folder / ABOUT).exists():
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(folder / ABOUT) as temporary:
                temporary.write_text(json.dumps(self._about, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class BlockFile:
    """A block in a folder, and when it was last used."""

    path: Path
    size: int
    used_ns: int


def block_files(folder: Path) -> Iterator[BlockFile]:
    """The blocks of all models in a folder; what a killed process left behind is removed."""
    for place in _entries(folder):
        for entry in _entries(Path(place.path)) if place.is_dir(follow_symlinks=False) else ():
            try:
                facts = entry.stat(follow_symlinks=False)
            except OSError:  # another process was faster
                continue
            path = Path(entry.path)
            if ".writing-" in path.name and time.time() - facts.st_mtime > _STALE_S:
                with contextlib.suppress(OSError):
                    path.unlink()
            elif path.suffix == SUFFIX and not path.name.startswith("."):
                yield BlockFile(path, facts.st_size, facts.st_mtime_ns)


def remove_blocks(folder: Path) -> None:
    """Remove the blocks of all models, and the folders of models that hold nothing else."""
    for file in block_files(folder):
        with contextlib.suppress(OSError):
            file.path.unlink()
    for place in _entries(folder):
        names = {entry.name for entry in _entries(Path(place.path))} if place.is_dir(follow_symlinks=False) else set()
        if names == {ABOUT}:
            with contextlib.suppress(OSError):
                Path(place.path, ABOUT).unlink()
                os.rmdir(place.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # not there, or removed in this moment
        return []


def _fault(data: bytearray, block: Wanted, model: str) -> str | None:
    """Why a file is not the one that is wanted, as far as its head tells; None when the head is right."""
    if data.startswith(block.head):
        return None
    try:
        head = json.loads(data[: data.index(b"\n")])
        said = [head[key] for key in ("format", "model", "tokens")]
    except (ValueError, LookupError, TypeError):
        return "is not a file of cached tokens, or damaged"
    own = json.loads(block.head)
    if said[0] != FORMAT:
        return f"has format {said[0]}, this program reads {FORMAT}"
    if said[1] != model:
        return "belongs to another model"
    return "holds other tokens" if said[2] != own["tokens"] else "stands behind another beginning"
