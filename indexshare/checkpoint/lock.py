"""One process at a time writes a folder or a file: a lock of the system, which ends with the process that holds it.

The lock is on a file of its own, `.indexshare.lock` in a folder or `.NAME.lock` beside a file, there only while it is
held. After `kill -9` the file stays and the lock does not, so nothing has to be cleaned up. Where the file system knows
no locks the work goes on without.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_FOLDER_LOCK = ".indexshare.lock"
_BUSY = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_FAR = 1 << 40  # Windows locks bytes, and lets nobody read them: one far beyond the text
_MOST_SHOWN = 100


@contextlib.contextmanager
def folder_lock(folder: str | Path) -> Iterator[None]:
    """Hold a folder, made with its parents if missing; an empty one that was made is removed again.

    Raises:
        ValueError: another process (or another thread) holds it; the text names it.
        OSError: the folder cannot be made or written.
    """
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder")
    made = not path.is_dir()
    path.mkdir(parents=True, exist_ok=True)
    try:
        with _held(path / _FOLDER_LOCK, folder):
            yield
    finally:
        if made:
            with contextlib.suppress(OSError):  # it holds what was wanted
                path.rmdir()


@contextlib.contextmanager
def file_lock(file: str | Path) -> Iterator[None]:
    """Hold the name of a file in an existing folder; errors as for `folder_lock`."""
    path = Path(file)
    with _held(path.with_name(f".{path.name}.lock"), file):
        yield


@contextlib.contextmanager
def _held(lock: Path, what: str | Path) -> Iterator[None]:
    descriptor = _acquire(lock, what)
    try:
        yield
    finally:
        if os.name != "nt":  # while it is held: afterwards the name may be another process's
            lock.unlink(missing_ok=True)
        os.close(descriptor)
        if os.name == "nt":
            with contextlib.suppress(OSError):
                lock.unlink(missing_ok=True)


def _acquire(lock: Path, what: str | Path) -> int:
    """Descriptor of the lock file, locked."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except OSError as error:
            holder = _holder(lock)
            if error.errno in _BUSY:
                os.close(descriptor)
                raise ValueError(
                    f"{what} is being written by {holder}; wait until that has ended, or use another name"
                ) from None
            if error.errno not in _NO_LOCKS:
                os.close(descriptor)
                raise
        if _is_at(descriptor, lock):
            break
        os.close(descriptor)  # its last holder removed the name in between
    os.ftruncate(descriptor, 0)
    about = {"pid": os.getpid(), "command": _command(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.write(descriptor, json.dumps(about).encode())
    return descriptor


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(descriptor: int, lock: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), lock.stat())
    except FileNotFoundError:
        return False


def _command() -> str:
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    words = " ".join(["indexshare" if name == "__main__.py" else name, *sys.argv[1:]])
    return words if len(words) <= _MOST_SHOWN else words[: _MOST_SHOWN - 3] + "..."


def _holder(lock: Path) -> str:
    """Who holds it, as far as the lock file says."""
    try:
        about = json.loads(lock.read_text(encoding="utf-8"))
        own = ", this one" if about["pid"] == os.getpid() else ""
        return f"process {about['pid']}{own} ({about['command']}, since {about['since']})"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"
