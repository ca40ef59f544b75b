"""Documents, and their split into training and held-out text: by file and by package, without what would leak."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from indexshare.data.copies import copies_by_name
from indexshare.data.documents import Document as Document
from indexshare.data.documents import package_of as package_of
from indexshare.text.files import SkippedFile, counts_by_kind

_SHINGLE = 3  # lines in one unit of comparison between files
_NEAR_COPY = 0.5  # a held-out file sharing more than this part of its units with training is set aside


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
        named: training files that are rewritten copies of one, by their names (`copies.py`).
        packages: what was taken of installed packages (`packages.py`).
        left_out: files that could not be taken as text, and why.
        note: what was done where the usual rule would have left one side empty; empty where it was not.
    """

    train: list[Document]
    held_out: list[Document]
    copies: int
    near_copies: int
    vendored: int = 0
    named: int = 0
    packages: tuple[PackageRecord, ...] = ()
    left_out: tuple[SkippedFile, ...] = ()
    note: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """Files on both sides, what was removed, and the packages, as plain values for a record of the run."""
        facts: dict[str, Any] = {
            "train_files": len(self.train),
            "held_out_files": len(self.held_out),
            "equal_files_removed": self.copies,
            "near_copies_removed": self.near_copies,
        }
        if self.left_out:
            facts["files_left_out"] = counts_by_kind(self.left_out)
        if self.note:
            facts["note"] = self.note
        if self.packages:
            facts["vendored_copies_removed"] = self.vendored
            facts["copies_by_name_removed"] = self.named
            facts["packages"] = [asdict(record) for record in self.packages]
        return facts


def is_held_out(name: str, part: float) -> bool:
    """Whether a file belongs to the held-out split: depends on its relative path and nothing else."""
    return _place(name) < part * 2.0**64


def _place(name: str) -> int:
    """Where a file stands in the order in which files are held out."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8], "big")


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


def split_folder(documents: Sequence[Document], part: float) -> Split:
    """`split_documents`, but that neither side stays empty where there are few files (`Split.note` says what was done).

    One file is cut: its end is held out. Of a few, none of which would be held out, the first in the order of hashes
    that is no more than half of the text is; where all would be, the longest is trained on.
    """
    if part == 0.0 or not documents:
        return split_documents(documents, part)
    distinct = {content_hash(document.text): document for document in reversed(documents)}
    if len(distinct) == 1:
        return replace(_cut(next(iter(distinct.values())), part), copies=len(documents) - 1)
    held = {document.name for document in documents if is_held_out(document.name, part)}
    if held and len(held) < len(documents):
        return split_documents(documents, part)
    by_size = sorted(distinct.values(), key=lambda d: (len(d.text), d.name))
    if held:
        held.remove(by_size[-1].name)
        note = f"the hash of every file's name says held out; {by_size[-1].name}, the longest, is trained on"
    else:
        half = sum(len(document.text) for document in by_size) / 2
        held = {min((d.name for d in by_size if len(d.text) <= half), key=_place)}
        note = f"few files, none of which the hash of its name holds out; {min(held)} is held out"
    return replace(split_documents(documents, part, held=held), note=note)


def _cut(document: Document, part: float) -> Split:
    """Hold out the end of one file, from a paragraph or at least a line on where that is possible."""
    text = document.text
    wanted = min(max(1, round(len(text) * (1 - part))), len(text.rstrip()) - 1)
    middle = len(text) // 2
    breaks = (text.rfind(mark, middle, wanted) + len(mark) for mark in ("\n\n", "\n"))
    at = next((place for place in breaks if place > middle and text[place:].strip()), wanted)
    line = text.count("\n", 0, at) + 1
    return Split(
        train=[Document(name=document.name, text=text[:at])],
        held_out=[Document(name=document.name, text=text[at:])],
        copies=0,
        near_copies=0,
        note=f"one file: the last {1 - at / len(text):.1%} of {document.name}, from line {line:,} on, is held out",
    )


def split_documents(
    documents: Iterable[Document], part: float, whole: Collection[str] = (), held: Collection[str] | None = None
) -> Split:
    """Split by file and by package, and remove what would leak.

    Training never holds a held-out file's content. Of two equal files the held-out one stays, first of all that of a
    package held out whole. Training files more than half of whose three-line units stand in such a package are its
    copies (vendored, as a rule) and are left out, as are rewritten ones, which their names betray (`copies.py`). A
    held-out file that still shares more than half of its units with training files is used for neither.

    Args:
        documents: in any order.
        part: of the files that is held out, by a hash of the name.
        whole: packages (`package_of`) of which every file is held out.
        held: names of the files that are held out, in place of the rule by hashes.
    """

    def is_held(document: Document) -> bool:
        by_name = is_held_out(document.name, part) if held is None else document.name in held
        return by_name or package_of(document.name) in whole

    by_hash: dict[bytes, Document] = {}
    copies = 0
    for document in sorted(documents, key=lambda d: (package_of(d.name) not in whole, not is_held(d), d.name)):
        copies += by_hash.setdefault(content_hash(document.text), document) is not document
    train = [d for d in by_hash.values() if not is_held(d)]
    candidates = {d.name: _shingles(d.text) for d in by_hash.values() if is_held(d)}
    kept_whole = set().union(*(units for name, units in candidates.items() if package_of(name) in whole))
    own = [d for d in train if not (kept_whole and _mostly_in(_shingles(d.text), kept_whole))]
    originals = [d for d in by_hash.values() if package_of(d.name) in whole]
    named = copies_by_name(own, originals) if originals else set[str]()
    vendored, own = len(train) - len(own), [d for d in own if d.name not in named]
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
        vendored=vendored,
        named=len(named),
    )
