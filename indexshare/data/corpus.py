"""Text folders as training corpora: reading, splitting by file and package, leak removal, token caches on disk."""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from indexshare.text.imports import imported_files
from indexshare.text.tokenizer import END_OF_TEXT, Tokenizer, file_header

STANDARD_LIBRARY = "stdlib"
_SHINGLE = 3  # lines in one unit of comparison between files
_NEAR_COPY = 0.5  # a held-out file sharing more than this part of its units with training is set aside


@dataclass(frozen=True, kw_only=True)
class TextFolder:
    """A folder of text files, or the running Python's standard library (`path="stdlib"`).

    Attributes:
        path: folder, or `stdlib`.
        pattern: glob below the folder.
        exclude: names of directories that are left out wherever they occur.
        held_out: part of the files kept out of training, chosen by a hash of the relative path.
        max_bytes: longer files are left out (they are data rather than text to learn from).
    """

    path: str
    pattern: str = "**/*.py"
    exclude: tuple[str, ...] = ("site-packages", "__pycache__", ".git")
    held_out: float = 0.05
    max_bytes: int = 300_000

    def __post_init__(self) -> None:
        if not 0.0 <= self.held_out < 1.0:
            raise ValueError(f"held_out is {self.held_out}; expected a part of the files in [0, 1)")

    @property
    def root(self) -> Path:
        """The folder on this machine."""
        return Path(sysconfig.get_path("stdlib") if self.path == STANDARD_LIBRARY else self.path)

    def split(self) -> Split:
        """Read the folder and split it by file; errors as for `read_folder`."""
        return split_documents(read_folder(self), self.held_out)


def library_text() -> TextFolder:
    """The standard library as text: without character tables and generated documentation, which are data."""
    exclude = ("site-packages", "__pycache__", "encodings", "pydoc_data", "lib2to3")
    return TextFolder(path=STANDARD_LIBRARY, exclude=exclude)


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text file: its path relative to the folder (with `/`), and its text."""

    name: str
    text: str

    @property
    def headed(self) -> str:
        """The text as the model sees it, under the line that names the file."""
        return file_header(self.name) + self.text


@dataclass(frozen=True, kw_only=True)
class PackageRecord:
    """What was taken of one installed package: files and UTF-8 bytes before copies were removed, and its licence."""

    name: str
    version: str
    licence: str
    files: int
    num_bytes: int
    held_out: bool


@dataclass(frozen=True, kw_only=True)
class Split:
    """What `split_documents` made of a text. Counts say what was left out and why.

    Attributes:
        train, held_out: the two sides.
        copies: files equal to another one.
        near_copies: held-out files of which training has more than half.
        vendored: training files more than half of which a package held out whole has.
        packages: what was taken of installed packages (`packages.py`).
    """

    train: list[Document]
    held_out: list[Document]
    copies: int
    near_copies: int
    vendored: int = 0
    packages: tuple[PackageRecord, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """Files on both sides, what was removed, and the packages, as plain values for a record of the run."""
        facts: dict[str, Any] = {
            "train_files": len(self.train),
            "held_out_files": len(self.held_out),
            "equal_files_removed": self.copies,
            "near_copies_removed": self.near_copies,
        }
        if self.packages:
            facts["vendored_copies_removed"] = self.vendored
            facts["packages"] = [asdict(record) for record in self.packages]
        return facts


def read_folder(folder: TextFolder) -> list[Document]:
    """Read all text files of a folder, in the order of their names.

    Binary, unreadable, empty and oversized files are passed over.

    Raises:
        ValueError: the folder does not exist or holds no text that matches.
    """
    root = folder.root
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give an existing folder or {STANDARD_LIBRARY!r}")
    documents, excluded = [], set(folder.exclude)
    for path in sorted(root.glob(folder.pattern)):
        name = path.relative_to(root).as_posix()
        if excluded.intersection(name.split("/")) or not path.is_file():
            continue
        text = read_text(path, folder.max_bytes)
        if text is not None:
            documents.append(Document(name=name, text=text))
    if not documents:
        raise ValueError(f"no text file under {root} matches {folder.pattern!r}; check the folder and the glob")
    return documents


def read_text(path: Path, max_bytes: int) -> str | None:
    """Text of a UTF-8 file with plain line breaks; None when it is unreadable, binary, empty or longer than that."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8") if len(data) <= max_bytes and b"\0" not in data else ""
    except (OSError, UnicodeDecodeError):
        return None
    return text.replace("\r\n", "\n") if text.strip() else None


def package_of(name: str) -> str:
    """The package of a file: the first folder of its path; "" for files at the top, which count as one package."""
    return name.split("/")[0] if "/" in name else ""


def is_held_out(name: str, part: float) -> bool:
    """Whether a file belongs to the held-out split: depends on its relative path and nothing else."""
    digest = hashlib.sha256(name.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") < part * 2.0**64


def content_hash(text: str) -> bytes:
    """Hash of a text that ignores blank lines and spaces at line ends."""
    lines = (line.rstrip() for line in text.splitlines())
    return hashlib.sha256("\n".join(line for line in lines if line).encode("utf-8", "replace")).digest()


def _shingles(text: str) -> set[int]:
    lines = [stripped for line in text.splitlines() if len(stripped := line.strip()) > 3]
    return {hash(tuple(lines[i : i + _SHINGLE])) for i in range(max(1, len(lines) - _SHINGLE + 1))}


def is_near_copy(text: str, other: str) -> bool:
    """Whether a text shares more than half of its three-line units with another."""
    return _mostly_in(_shingles(text), _shingles(other))


def _mostly_in(units: set[int], others: set[int]) -> bool:
    return len(units & others) > _NEAR_COPY * len(units)


def split_documents(documents: Iterable[Document], part: float, whole: Collection[str] = ()) -> Split:
    """Split by file and by package, and remove what would leak.

    Training never holds a held-out file's content. Of two equal files the held-out one stays, first of all that of a
    package held out whole. Training files more than half of whose three-line units stand in such a package are its
    copies (vendored, as a rule) and are left out. A held-out file that still shares more than half of its units with
    training files is used for neither.

    Args:
        documents: in any order.
        part: of the files that is held out, by a hash of the name.
        whole: packages (`package_of`) of which every file is held out.
    """

    def held(document: Document) -> bool:
        return is_held_out(document.name, part) or package_of(document.name) in whole

    by_hash: dict[bytes, Document] = {}
    copies = 0
    for document in sorted(documents, key=lambda d: (package_of(d.name) not in whole, not held(d), d.name)):
        copies += by_hash.setdefault(content_hash(document.text), document) is not document
    train = [d for d in by_hash.values() if not held(d)]
    candidates = {d.name: _shingles(d.text) for d in by_hash.values() if held(d)}
    kept_whole = set().union(*(units for name, units in candidates.items() if package_of(name) in whole))
    own = [d for d in train if not (kept_whole and _mostly_in(_shingles(d.text), kept_whole))]
    wanted = set().union(*candidates.values())
    seen: set[int] = set()
    for document in own:
        seen |= wanted & _shingles(document.text)
    held_out = [d for d in by_hash.values() if d.name in candidates and not _mostly_in(candidates[d.name], seen)]
    return Split(
        train=sorted(own, key=lambda d: d.name),
        held_out=held_out,
        copies=copies,
        near_copies=len(candidates) - len(held_out),
        vendored=len(train) - len(own),
    )


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
        end = tokenizer.id_of(END_OF_TEXT)
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
