"""Text folders as training corpora: which files are read, what is said of the others, and token caches on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np

from indexshare.config.fields import check_fields
from indexshare.data.splitting import Document, Split, package_of, split_folder
from indexshare.text.files import SkippedFile, describe_skipped, displayable, plural, skipped, take_text
from indexshare.text.imports import imported_files
from indexshare.text.tokenizer import Tokenizer

STANDARD_LIBRARY = "stdlib"
_MAX_TOTAL_BYTES = 2_000_000_000  # of the files of a folder


@dataclass(frozen=True, kw_only=True)
class TextFolder:
    """A folder of text files, one text file, or the running Python's standard library (`path="stdlib"`).

    Attributes:
        path: folder or file, `~` for the home folder; or `stdlib`.
        pattern: globs below the folder, one or several; of a single file only its name counts.
        exclude: names of files and folders that are left out wherever they occur, or patterns of them (`.*`); with a
            `/`, one path below the folder.
        held_out: part of the files kept out of training, chosen by a hash of the relative path (`split_folder` says
            what becomes of very few files).
        max_bytes: longer files are left out (they are data rather than text to learn from).
    """

    path: str
    pattern: str | tuple[str, ...] = "**/*.py"
    exclude: tuple[str, ...] = ("site-packages", "__pycache__", ".git")
    held_out: float = 0.05
    max_bytes: int = 300_000

    def __post_init__(self) -> None:
        check_fields(self, "text: ")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes is {self.max_bytes}; expected at least 1")
        if not 0.0 <= self.held_out < 1.0:
            raise ValueError(f"held_out is {self.held_out}; expected a part of the files in [0, 1)")
        for pattern in self.patterns:
            parts = PurePath(pattern).parts
            if not parts or PurePath(pattern).anchor or ".." in parts or any("**" in p and p != "**" for p in parts):
                raise ValueError(
                    f"pattern is {pattern!r}; expected a glob below the folder, such as '*.md' or '**/*.txt'"
                )

    @property
    def patterns(self) -> tuple[str, ...]:
        """The globs, however many."""
        return (self.pattern,) if isinstance(self.pattern, str) else self.pattern

    @property
    def root(self) -> Path:
        """The folder (or file) on this machine."""
        if self.path == STANDARD_LIBRARY:
            return Path(sysconfig.get_path("stdlib"))
        return Path(self.path).expanduser()

    def absolute(self) -> TextFolder:
        """The same text by a path that means the same from anywhere."""
        return self if self.path == STANDARD_LIBRARY else replace(self, path=str(self.root.absolute()))

    def split(self) -> Split:
        """Read the folder and split it by file; errors as for `read_folder`."""
        found = read_folder(self)
        return replace(split_folder(found.documents, self.held_out), left_out=found.left_out)


def anywhere(pattern: str) -> str:
    """A glob as people type it: without a `/` it matches in every folder."""
    return pattern if "/" in pattern else f"**/{pattern}"


@dataclass(frozen=True, kw_only=True)
class FolderText:
    """What was read of a folder, in the order of names, and what could not be."""

    documents: list[Document]
    left_out: tuple[SkippedFile, ...]


def library_text() -> TextFolder:
    """The standard library as text: without character tables and generated documentation, which are data."""
    exclude = ("site-packages", "__pycache__", "encodings", "pydoc_data", "lib2to3")
    return TextFolder(path=STANDARD_LIBRARY, exclude=exclude)


def read_folder(folder: TextFolder) -> FolderText:
    """Read all text files of a folder.

    Raises:
        ValueError: the folder does not exist, holds no text that matches (the text says what it holds instead), or more
            than 2 GB of it.
    """
    root = folder.root
    if not root.exists():
        raise ValueError(f"{root} does not exist; give an existing folder, a text file, or {STANDARD_LIBRARY!r}")
    documents, left_out = [], []
    files = [(root, displayable(root.name))] if root.is_file() else list(_matching(folder))
    _check_total(files)
    for path, name in files:
        found = take_text(path, name, folder.max_bytes)
        if isinstance(found, SkippedFile):
            left_out.append(found)
        else:
            documents.append(Document(name=name, text=found))
    if root.is_dir():
        left_out += _closed_folders(folder)
    if not documents:
        raise ValueError(_nothing_found(folder, left_out))
    return FolderText(documents=documents, left_out=tuple(left_out))


def _matching(folder: TextFolder) -> Iterator[tuple[Path, str]]:
    """Files (or what cannot be seen to be a folder) that match, and their names."""
    root = folder.root
    for path in sorted({path for pattern in folder.patterns for path in root.glob(pattern)}):
        name = displayable(path.relative_to(root).as_posix())
        if not _is_excluded(name, folder) and not path.is_dir():
            yield path, name


def _check_total(files: Sequence[tuple[Path, str]]) -> None:
    """Refuse (ValueError) more than can be held in memory, before any of it is read."""
    total = 0
    for path, _ in files:
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    if total > _MAX_TOTAL_BYTES:
        raise ValueError(
            f"{len(files):,} files of {total:,} bytes match, more than the {_MAX_TOTAL_BYTES:,} that are read at once; "
            "choose some by a pattern"
        )


def _is_excluded(name: str, folder: TextFolder) -> bool:
    paths = tuple(pattern for pattern in folder.exclude if "/" in pattern)
    if paths and f"{name}/".startswith(tuple(f"{path.strip('/')}/" for path in paths)):
        return True
    return any(fnmatchcase(part, pattern) for part in name.split("/") for pattern in folder.exclude)


def _closed_folders(folder: TextFolder) -> list[SkippedFile]:
    """Folders that may not be entered: a glob passes over them without a word."""
    closed, root = list[SkippedFile](), folder.root

    def refused(error: OSError) -> None:
        name = displayable(os.path.relpath(error.filename or root, root))
        closed.append(skipped(name.replace(os.sep, "/"), error))

    for _, subfolders, _ in os.walk(root, onerror=refused):
        subfolders[:] = [name for name in subfolders if not _is_excluded(displayable(name), folder)]
    return closed


def _nothing_found(folder: TextFolder, left_out: Sequence[SkippedFile]) -> str:
    """Why there is no text, and what there is."""
    root, wanted = folder.root, " or ".join(repr(pattern) for pattern in folder.patterns)
    if left_out:
        kinds = {entry.kind for entry in left_out}
        fix = "raise `max_bytes`" if kinds == {f"above {folder.max_bytes:,} bytes"} else "give other files"
        return f"no text to be had from {root}: {describe_skipped(left_out)}; {fix}"
    others = Counter(
        path.suffix or path.name
        for path in root.rglob("*")
        if path.is_file() and not _is_excluded(displayable(path.relative_to(root).as_posix()), folder)
    )
    if not others:
        return f"no text file under {root} matches {wanted}: it holds no files; check the folder"
    most = ", ".join(f"{number:,} {displayable(kind)}" for kind, number in others.most_common(4))
    return f"no text file under {root} matches {wanted}; it holds {plural(others.total(), 'file')}: {most}"


class TokenCorpus:
    """Documents as one array of token ids on disk, memory-mapped, with where each document starts.

    Every document is `# file: name`, its text, and the end-of-text token.
    """

    def __init__(self, path: Path) -> None:
        info = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self.names: list[str] = info["names"]
        self.data_hash: str = info["data_hash"]
        self.num_bytes: int = info["num_bytes"]
        self.imports: list[list[int]] = info["imports"]  # of each document, others of its package
        self.starts = np.asarray(info["starts"], dtype=np.int64)  # [documents + 1], last = number of tokens
        self.ids = np.memmap(path, dtype=np.dtype(info["dtype"]), mode="r")
        if len(self.ids) != self.starts[-1]:
            raise ValueError(f"{path} holds {len(self.ids)} ids, its index says {self.starts[-1]}; delete both")

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def num_documents(self) -> int:
        """Number of files."""
        return len(self.names)

    def document(self, index: int) -> np.ndarray:
        """Token ids of one document, end-of-text token included."""
        return self.ids[self.starts[index] : self.starts[index + 1]]

    @cached_property
    def groups(self) -> list[np.ndarray]:
        """Document indices by package: the first directory of the path, or none."""
        keys: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            keys.setdefault(package_of(name), []).append(i)
        return [np.asarray(members) for _, members in sorted(keys.items())]

    def reading_order(self, rng: np.random.Generator) -> np.ndarray:
        """All documents in a random order that keeps packages together and puts a file behind those it imports.

        Packages and the files of each are shuffled; then, file by file, what a file imports and is not placed yet comes
        first, with what that imports. So a long row shows definitions before their uses, as far as it reaches
        (as in DeepSeek-Coder, arXiv 2401.14196, section 2.2, there from a fixed start).
        """
        order: list[int] = []
        placed = np.zeros(self.num_documents, dtype=bool)
        for group in rng.permutation(len(self.groups)):
            for first in rng.permutation(self.groups[group]).tolist():
                waiting = [(first, False)]
                while waiting:
                    document, ready = waiting.pop()
                    if ready:
                        order.append(document)
                    elif not placed[document]:
                        placed[document] = True
                        waiting += [(document, True), *((other, False) for other in self.imports[document])]
        return np.asarray(order)

    @classmethod
    def build(cls, documents: Sequence[Document], tokenizer: Tokenizer, path: Path) -> TokenCorpus:
        """Tokenise documents into `path` (and its `.json` index), or reuse what is there for the same data.

        Raises:
            ValueError: no documents.
            OSError: the files could not be written, for instance on a full disk; nothing half-written is left.
        """
        if not documents:
            raise ValueError("no documents to tokenise; the split left this side empty, change `held_out`")
        data_hash = hash_documents(documents, tokenizer)
        if _indexed_hash(path) == data_hash:
            return cls(path)
        dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        end = tokenizer.end_id
        arrays = []
        for first in range(0, len(documents), 256):
            texts = [d.headed for d in documents[first : first + 256]]
            rows = tokenizer.encode_batch(texts, parse_special=False)
            arrays += [np.asarray([*ids, end], dtype=dtype) for ids in rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        info = {
            "data_hash": data_hash,
            "dtype": dtype.name,
            "num_bytes": sum(len(d.headed.encode("utf-8")) for d in documents),
            "names": [d.name for d in documents],
            "imports": _imports(documents),
            "starts": [0, *np.cumsum([len(a) for a in arrays]).tolist()],
        }
        index, temporary = path.with_suffix(".json"), path.with_suffix(".tmp")
        index.unlink(missing_ok=True)  # at no moment is there an index of other tokens
        try:
            with temporary.open("wb") as file:  # and not `tofile`, which does not say why it could not write
                file.write(np.concatenate(arrays).data)
            os.replace(temporary, path)
            temporary.write_text(json.dumps(info), encoding="utf-8")
            os.replace(temporary, index)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise OSError(f"could not write {path}: {error.strerror}; free some space") from error
        return cls(path)


def _imports(documents: Sequence[Document]) -> list[list[int]]:
    """Of each document, the documents of its own package that it imports."""
    members: dict[str, list[int]] = {}
    for i, document in enumerate(documents):
        members.setdefault(package_of(document.name), []).append(i)
    result: list[list[int]] = [[] for _ in documents]
    for group in members.values():
        found = imported_files([documents[i].name for i in group], [documents[i].text for i in group])
        for i, others in zip(group, found, strict=True):
            result[i] = [group[other] for other in others]
    return result


def _indexed_hash(path: Path) -> str | None:
    """Data hash of the token file at `path`, None when it or its index is missing or damaged."""
    try:
        info = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        complete = path.stat().st_size == info["starts"][-1] * np.dtype(info["dtype"]).itemsize
        return str(info["data_hash"]) if complete and "imports" in info else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def hash_documents(documents: Sequence[Document], tokenizer: Tokenizer) -> str:
    """Hash of names, texts and the tokenizer: equal hashes mean equal token files."""
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for document in documents:
        for part in (document.name, document.text):
            digest.update(hashlib.sha256(part.encode("utf-8")).digest())
    return digest.hexdigest()
