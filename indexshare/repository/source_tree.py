"""The text files of a folder, and where in one of them a completion starts. No torch.

Nothing in a folder may stop the reading of the rest: whatever is not taken is listed with the reason.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from indexshare.text.files import (
    GENERATED_FOLDERS,
    MAX_FILE_BYTES,
    NotText,
    SkippedFile,
    displayable,
    read_text,
    skipped,
    take_text,
)

MAX_TREE_BYTES = 64_000_000  # what is read at most to choose from; a million-token context is about 4 MB
MAX_TREE_FILES = 20_000  # files and folders that are looked at
Progress = Callable[[str, str], None]  # (what is being done, to which file or folder)


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """One text file: `name` is its path with `/`, `text` has `\\n` line ends and ends with exactly one."""

    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class SourceTree:
    """What was found in a folder: files sorted by name, skipped entries sorted by name."""

    root: Path
    files: tuple[SourceFile, ...]
    skipped: tuple[SkippedFile, ...]

    def name_of(self, path: Path) -> str:
        """The name under which a path of this tree is shown; outside the tree, the bare file name.

        Where a file of the tree has that bare name, the full path: one of the two would be taken for the other.
        """
        base = naming_base(self.root)
        resolved = path.resolve()
        if resolved.is_relative_to(self.root.resolve()):
            return displayable(resolved.relative_to(base.resolve()).as_posix())
        name = displayable(path.name)
        return displayable(resolved.as_posix()) if name in {file.name for file in self.files} else name


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """A file cut at the cursor, into the text `before` and `after` it. `line` and `column` count from 1."""

    path: Path
    line: int
    column: int
    before: str
    after: str = ""


def naming_base(root: Path) -> Path:
    """The folder that names are relative to: the parent when `root` is itself a Python package.

    The name of a module's file then matches the name it is imported by (`rich/text.py`, `rich.text`).
    """
    return root.resolve().parent if (root / "__init__.py").is_file() else root


def read_cursor(spec: str) -> Cursor:
    """Read `FILE`, `FILE:LINE` or `FILE:LINE:COLUMN` (both from 1) and cut the file there.

    Without a line the cursor is after the last character that is not white space: a line break at the end of
    a file says nothing about what comes next, but a model would read it as the end of the block. Without a
    column it is at the end of the line, before its line break. Column c stands before the c-th character.

    Raises:
        ValueError: no such place in the file, or the file is not text.
        OSError: the file cannot be opened.
    """
    path, line, column = _split_place(spec)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected FILE, FILE:LINE or FILE:LINE:COLUMN")
    try:
        text = read_text(path)
    except ValueError as reason:
        raise ValueError(f"{path} cannot be completed: {reason}") from None
    lines = text.split("\n")
    if line is None:
        before = text.rstrip()
        lines = before.split("\n")
        return Cursor(path=path, line=len(lines), column=len(lines[-1]) + 1, before=before, after=text[len(before) :])
    if not 1 <= line <= len(lines):
        raise ValueError(f"line {line} is outside {path}, which has lines 1 to {len(lines)}")
    width = len(lines[line - 1])
    column = width + 1 if column is None else column
    if not 1 <= column <= width + 1:
        raise ValueError(f"column {column} is outside line {line} of {path}, which has columns 1 to {width + 1}")
    before = "\n".join([*lines[: line - 1], lines[line - 1][: column - 1]])
    return Cursor(path=path, line=line, column=column, before=before, after=text[len(before) :])


def _split_place(spec: str) -> tuple[Path, int | None, int | None]:
    """File, line and column of `FILE[:LINE[:COLUMN]]`; a file with `:3` in its name is found too."""
    if not spec:
        raise ValueError("the file to complete has no name; expected FILE, FILE:LINE or FILE:LINE:COLUMN")
    path, numbers = spec, list[int]()
    while not os.path.exists(path) and len(numbers) < 2 and (match := re.fullmatch(r"(?s)(.+):(\d+)", path)):
        path = match[1]
        numbers.insert(0, int(match[2]))
    line, column = [*numbers, None, None][:2]
    return Path(path), line, column


def read_tree(
    root: Path,
    *,
    max_file_bytes: int = MAX_FILE_BYTES,
    max_tree_bytes: int = MAX_TREE_BYTES,
    max_tree_files: int = MAX_TREE_FILES,
    may_be_empty: bool = False,
    near: Path | None = None,
    progress: Progress | None = None,
) -> SourceTree:
    """Read the text files below a folder, in the order of names.

    At most `max_tree_files` files are looked at: those of `near` (a folder below `root`) and of the folders above it
    first, then folder by folder, the upper ones first; where that ends it, `skipped` says so. Hidden and generated
    folders, links that lead out of the folder or to a file already taken, binary, empty, oversized and unreadable files
    are skipped and listed. Links to folders are not followed.

    Raises:
        FileNotFoundError, NotADirectoryError: `root` is not a folder.
        ValueError: it holds no text file at all, unless it `may_be_empty`.
    """
    if not root.exists():
        raise FileNotFoundError(f"the context folder {root} does not exist")
    if not root.is_dir():
        raise NotADirectoryError(f"the context {root} is a file; expected a folder")
    paths, left_out = _walk(root, max_tree_files, near, progress)
    base, files, taken, total = naming_base(root), [], set[Path](), 0
    for path in sorted(paths, key=Path.is_symlink):  # a file keeps its own name, not a link's
        name = displayable(_name(path, base))
        try:
            resolved = _inside(path, root, taken)
            if total >= max_tree_bytes:
                raise NotText(f"{max_tree_bytes:,} bytes of text were read before it")
        except (NotText, OSError, RuntimeError) as error:
            left_out.append(skipped(name, error, routine=path.name.startswith(".")))
            continue
        found = take_text(resolved, name, max_file_bytes)
        if isinstance(found, SkippedFile):
            left_out.append(found)
            continue
        taken.add(resolved)
        total += len(found)
        if progress is not None:
            progress("reading", name)
        files.append(SourceFile(name=name, text=found.rstrip("\n") + "\n"))
    if not files and not may_be_empty:
        why = f": {left_out[0].name}: {left_out[0].reason}" if left_out else ""
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        raise ValueError(f"the context folder {root} holds no text files{why}{more}")
    return SourceTree(
        root=root,
        files=tuple(sorted(files, key=lambda f: f.name)),
        skipped=tuple(sorted(left_out, key=lambda s: s.name)),
    )


def _walk(root: Path, most: int, near: Path | None, progress: Progress | None) -> tuple[list[Path], list[SkippedFile]]:
    """File paths below `root`, and the folders that were not entered."""
    base, paths, left_out = naming_base(root), list[Path](), list[SkippedFile]()
    waiting, seen = deque([*_way_down(root, near), root]), set[Path]()
    while waiting:
        folder = waiting.popleft()
        if folder in seen:
            continue
        seen.add(folder)
        if progress is not None:
            progress("looking into", displayable(str(folder)))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            left_out.append(skipped(displayable(_name(folder, base)), error))
            continue
        for entry in entries:
            path = folder / entry.name
            if not _is_folder(entry):
                paths.append(path)
            elif reason := _closed(entry):
                name = displayable(_name(path, base))
                left_out.append(skipped(name, NotText(reason), routine="link" not in reason))
            else:
                waiting.append(path)
        if len(paths) >= most or len(seen) >= most:
            rest = f"more than {most:,} files or folders; the others were not looked at, name a smaller folder"
            return paths[:most], [
                *left_out,
                SkippedFile(name=displayable(str(root)), reason=rest, kind="too many files"),
            ]
    return paths, left_out


def _way_down(root: Path, near: Path | None) -> list[Path]:
    """The folder `near` and those above it as far as `root`, the nearest first; none where it does not lie below."""
    if near is None or not near.resolve().is_relative_to(root.resolve()):
        return []
    inner = near.resolve().relative_to(root.resolve())
    way = [root / part for part in (inner, *inner.parents) if not any(map(_is_closed_name, part.parts))]
    return [folder for folder in way if folder != root]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links is found when the file is read
        return False


def _is_closed_name(name: str) -> bool:
    return name.startswith(".") or name in GENERATED_FOLDERS


def _closed(entry: os.DirEntry[str]) -> str:
    """Why a folder is not entered; empty for one that is."""
    if entry.name.startswith("."):
        return "hidden folder"
    if entry.name in GENERATED_FOLDERS:
        return "generated or installed files"
    return "link to a folder, not followed" if entry.is_symlink() else ""


def _name(path: Path, base: Path) -> str:
    """Path relative to the naming base, with `/`; links are shown under their own name."""
    absolute = path.parent.resolve() / path.name
    return absolute.relative_to(base.resolve()).as_posix() if absolute.is_relative_to(base.resolve()) else str(path)


def _inside(path: Path, root: Path, taken: set[Path]) -> Path:
    """What the path leads to, refused (NotText) when hidden, outside the folder or already taken."""
    if path.name.startswith("."):
        raise NotText("hidden file")
    resolved = path.resolve(strict=True)
    if not resolved.is_relative_to(root.resolve()):
        raise NotText("link that leads out of the folder")
    if resolved in taken:
        raise NotText("link to a file that is already taken")
    return resolved
