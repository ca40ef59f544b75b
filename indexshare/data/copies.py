"""Copies of packages that are held out whole, found by names where their lines were rewritten.

A package that carries another one in a form of its own (`typer/_click`) shares few lines with it, and all of its names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from indexshare.data.documents import Document, package_of
from indexshare.text.imports import definitions

_LEAST_NAMES = 6  # that a file defines and few packages do
_MOST_PACKAGES = 2  # define a name that still tells where it comes from
_SHARE = 0.5  # of these names; a file with more of them in a held-out package is its copy


def copies_by_name(train: Sequence[Document], kept: Sequence[Document]) -> set[str]:
    """Names of training files that are copies of packages held out whole.

    A folder or file that is called like such a package (but for `_` before it) is its copy; so is a file that speaks of
    the package and of whose names, as far as few other packages define them, the package defines more than half.

    Args:
        train: training files.
        kept: files of the packages held out whole.
    """
    names = _import_names(kept)
    called = {document.name for document in train if _is_called(document.name, names)}
    speaking = [d for d in train if d.name not in called and any(name in d.text for name in names)]
    defined = {document.name: definitions(document.text) for document in speaking}
    users = Counter(name for own in _by_package(speaking, defined).values() for name in own)
    known = set().union(*(definitions(document.text) for document in kept))
    for document in speaking:
        own = {name for name in defined[document.name] if users[name] <= _MOST_PACKAGES}
        if len(own) >= _LEAST_NAMES and len(own & known) > _SHARE * len(own):
            called.add(document.name)
    return called


def _plain(part: str) -> str:
    return part.removesuffix(".py").lstrip("_").lower()


def _import_names(documents: Sequence[Document]) -> set[str]:
    """What these packages are called, and the one folder below that all files of a package stand in."""
    folders: dict[str, set[str]] = {}
    for document in documents:
        first, _, rest = document.name.partition("/")
        folders.setdefault(first, set()).add(rest.split("/")[0] if "/" in rest else "")
    inner = {only for found in folders.values() if len(found) == 1 for only in found if only}
    return {_plain(name) for name in (*folders, *inner)}


def _is_called(name: str, names: Collection[str]) -> bool:
    """Whether a file, or a folder around it below its package, has one of these names."""
    return any(_plain(part) in names for part in name.split("/")[1:])


def _by_package(documents: Sequence[Document], defined: dict[str, set[str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for document in documents:
        found.setdefault(package_of(document.name), set()).update(defined[document.name])
    return found
