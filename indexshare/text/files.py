"""The one reader of text files: what counts as text, how it is decoded, and how a file that is left out is named; and
how results are written.

Prompts, training text, contexts and evaluations all come through here, so that a model reads a file as it was trained
to: UTF-8 without a byte order mark, every line end (`\\r\\n`, `\\r`) as `\\n`. No torch.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_FILE_BYTES = 1_000_000  # longer files are data
GENERATED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "build", "dist"})
_FIRST_SHOWN = 3


class NotText(ValueError):
    """A file cannot be taken as text. Its message is the bare reason.

    Args:
        reason: with the details.
        kind: what all files of this kind have in common, for counts.
    """

    def __init__(self, reason: str, kind: str | None = None) -> None:
        super().__init__(reason)
        self.kind = kind or reason


@dataclass(frozen=True, kw_only=True)
class SkippedFile:
    """A file or folder that was not taken, and why; `kind` is the reason without details.

    `routine` ones are hidden, generated or empty, and need nobody's attention.
    """

    name: str
    reason: str
    kind: str = ""
    routine: bool = False


def decode_text(data: bytes) -> str:
    """Text of UTF-8 bytes: a byte order mark removed, every line end as `\\n`.

    Raises:
        NotText: the bytes are not UTF-8.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotText(f"not UTF-8 (byte {error.start})", "not UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path, max_bytes: int = MAX_FILE_BYTES) -> str:
    """Text of a regular UTF-8 file, as `decode_text`.

    Raises:
        NotText: not a regular file, too large, binary, or not UTF-8.
        OSError: the system refuses (permission, loop of links, vanished file).
    """
    info = path.stat()
    if not stat.S_ISREG(info.st_mode):  # opening a pipe would wait for ever
        raise NotText("not a regular file")
    if info.st_size > max_bytes:
        raise NotText(f"{info.st_size:,} bytes, above the limit of {max_bytes:,}", f"above {max_bytes:,} bytes")
    data = path.read_bytes()
    if b"\0" in data:
        raise NotText("binary (holds a zero byte)", "binary")
    return decode_text(data)


def take_text(path: Path, name: str, max_bytes: int = MAX_FILE_BYTES) -> str | SkippedFile:
    """Text of a file that holds some; otherwise the entry that says why it was left out, under `name`."""
    try:
        text = read_text(path, max_bytes)
    except (NotText, OSError, RuntimeError) as error:
        return skipped(name, error)
    return text if text.strip() else SkippedFile(name=name, reason="empty", kind="empty", routine=True)


def skipped(name: str, error: Exception, *, routine: bool = False) -> SkippedFile:
    """The entry of a file that could not be taken because of `error`."""
    if isinstance(error, NotText):
        return SkippedFile(name=name, reason=str(error), kind=error.kind, routine=routine)
    reason = system_reason(error)
    return SkippedFile(name=name, reason=reason, kind=reason, routine=routine)


def system_reason(error: Exception) -> str:
    """Why the system refused, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    # Before Python 3.13 a loop of links is a RuntimeError
    return "loop of links" if "loop" in str(error).lower() else str(error)


def displayable(name: str) -> str:
    """A file's name that any UTF-8 stream can hold: names are bytes to the system, undecodable ones are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def plural(number: int, noun: str) -> str:
    """`1 file`, `2 files`, `1,234 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def counts_by_kind(entries: Iterable[SkippedFile]) -> dict[str, int]:
    """How many files of each kind were left out, the most frequent first."""
    return dict(Counter(entry.kind or entry.reason for entry in entries).most_common())


def describe_skipped(entries: Iterable[SkippedFile]) -> str:
    """`4 files left out: 3 not UTF-8, 1 above 300,000 bytes (a.txt, b/c.txt and 2 more)`; empty for none."""
    all_of_them = list(entries)
    if not all_of_them:
        return ""
    reasons = ", ".join(f"{number:,} {kind}" for kind, number in counts_by_kind(all_of_them).items())
    names = ", ".join(entry.name for entry in all_of_them[:_FIRST_SHOWN])
    more = f" and {len(all_of_them) - _FIRST_SHOWN:,} more" if len(all_of_them) > _FIRST_SHOWN else ""
    return f"{plural(len(all_of_them), 'file')} left out: {reasons} ({names}{more})"


def check_can_write(file: Path, *, replaces: Sequence[bytes] | None = None) -> None:
    """Refuse (ValueError) a file that could not be written at the end of long work, before it begins.

    Args:
        file: may be there already.
        replaces: how files begin that may be replaced; any may unless given. An empty one always may.
    """
    folder = file.absolute().parent
    if file.is_dir():
        raise ValueError(f"{file} is a folder; give the name of a file in it")
    if not folder.is_dir():
        raise ValueError(f"{file} cannot be written: the folder {folder} does not exist; create it first")
    try:
        with tempfile.TemporaryFile(dir=folder):  # permissions do not say what a read-only or full disk will
            pass
    except OSError as error:
        raise ValueError(f"{file} cannot be written: {system_reason(error)}; choose another folder") from None
    if replaces is not None and file.is_file():
        with file.open("rb") as stream:
            start = stream.read(max(map(len, replaces)))
        if start and not start.startswith(tuple(replaces)):
            raise ValueError(
                f"{file} is there and is a file of another kind, which would be lost; give another name or remove it"
            )


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary name beside `file`, of the same kind, that takes its place if the block succeeds; gone either way."""
    temporary = file.with_name(f".{file.stem}.writing-{os.getpid()}{file.suffix}")
    try:
        yield temporary
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
