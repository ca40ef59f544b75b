"""Sources of installed packages as training text: each a repository of its own, some held out whole."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from indexshare.config.fields import check_fields
from indexshare.data.corpus import TextFolder, read_folder
from indexshare.data.splitting import Document, PackageRecord, Split, package_of, split_documents
from indexshare.text.files import SkippedFile, describe_skipped, displayable, take_text

# As they stand in the metadata of packages: SPDX identifiers, the older classifiers, and common free spellings.
PERMISSIVE = frozenset(
    {
        *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "LLVM-exception"),
        *("MIT", "MIT-CMU", "PSF-2.0", "Zlib"),
        *("Apache Software License", "BSD License", "MIT License", "Python Software Foundation License"),
        *("Apache 2.0", "Apache 2.0 License", "BSD"),
    }
)


_TESTS = {"test", "tests"}


@dataclass(frozen=True, kw_only=True)
class Package:
    """An installed distribution by its name, or only the named folders (or files) of it; with its tests if wanted."""

    name: str
    folders: tuple[str, ...] = ()
    tests: bool = False

    def __post_init__(self) -> None:
        check_fields(self, f"package {self.name!r}: ")

    @property
    def repository(self) -> str:
        """First folder of its documents' names: the distribution's name as Python would spell it."""
        return re.sub(r"[-_.]+", "_", self.name).lower()


@dataclass(frozen=True, kw_only=True)
class PackageText:
    """A folder, usually the standard library, and the sources of installed packages.

    What it holds depends on the versions installed; they are recorded with the data (`Split.packages`).

    Attributes:
        base: the folder; its own `held_out` and `max_bytes` count for the packages too.
        packages: distributions to learn from.
        whole: distributions to hold out whole; every file of them is held-out text.
        package_bytes: most bytes of one distribution, so that a large one does not drown the others: its folders are
            taken in an order given by hashes of their names until it is reached.
        exclude: names of directories that are left out: tests (but of packages of which they are wanted), and copies of
            other packages.
        suffixes: of the files of `packages`; of those held out whole only Python source is read.
        descriptions: read what the metadata of `packages` say of them too, as `README.md`: prose.
    """

    base: TextFolder
    packages: tuple[Package, ...]
    whole: tuple[Package, ...] = ()
    package_bytes: int = 1_500_000
    exclude: tuple[str, ...] = ("__pycache__", "_vendor", "test", "tests", "vendored")
    suffixes: tuple[str, ...] = (".py",)
    descriptions: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "text: ")
        names = [package.repository for package in (*self.packages, *self.whole)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not names:
            raise ValueError(f"packages are {names}; expected at least one, each once" + f" ({twice})" * bool(twice))
        if self.package_bytes < 1:
            raise ValueError(f"package_bytes is {self.package_bytes}; expected at least 1")

    def split(self) -> Split:
        """Read everything and split it by file and by package.

        Raises:
            ValueError: a package is not installed, its licence is not known to allow it, or it has no file that counts;
                or as for `read_folder`.
        """
        check_installed([*self.packages, *self.whole])
        base = read_folder(self.base)
        documents, left_out, records = list(base.documents), list(base.left_out), list[PackageRecord]()
        taken = {package_of(document.name) for document in documents}
        for package in (*self.packages, *self.whole):
            if package.repository in taken:
                raise ValueError(f"{package.name!r} is also a folder of the base text; leave one of them out")
            own = package not in self.whole
            files, record, others = read_package(
                package, max_bytes=self.base.max_bytes, package_bytes=self.package_bytes, exclude=self.exclude,
                suffixes=self.suffixes if own else (".py",), descriptions=own and self.descriptions,
            )  # fmt: skip
            check_licence(record)
            documents += files
            left_out += others
            records.append(replace(record, held_out=package in self.whole))
        whole = {package.repository for package in self.whole}
        split = split_documents(documents, self.base.held_out, whole)
        return replace(split, packages=tuple(records), left_out=tuple(left_out))

    def absolute(self) -> PackageText:
        """The same text by a path that means the same from anywhere."""
        return replace(self, base=self.base.absolute())


TrainingText: TypeAlias = TextFolder | PackageText


def check_installed(packages: Sequence[Package]) -> None:
    """Refuse (ValueError) packages that are not installed, all of them at once, with the command that installs them."""
    missing = []
    for package in packages:
        try:
            distribution(package.name)
        except PackageNotFoundError:
            missing.append(package.name)
    if missing:
        raise ValueError(
            f"the training text has packages that are not installed: {', '.join(missing)}; "
            f"run: pip install -c constraints.txt {' '.join(missing)}"
        )


def check_licence(record: PackageRecord) -> None:
    """Refuse (ValueError) to train on a package unless its licence is known to allow it."""
    if not is_permissive(record.licence):
        raise ValueError(
            f"the licence of {record.name!r} is given as {record.licence or 'nothing'!r}, which is not among those "
            "known to allow training on it; leave the package out"
        )


def read_package(
    package: Package, *, max_bytes: int, package_bytes: int, exclude: Sequence[str] = (),
    suffixes: Sequence[str] = (".py",), descriptions: bool = False,
) -> tuple[list[Document], PackageRecord, list[SkippedFile]]:  # fmt: skip
    """Text files of an installed distribution, in the order of their names, where they come from, and what could
    not be read.

    A document is called as its path below site-packages, under a folder of the distribution's name if it is not in one.

    Args:
        package: an installed one.
        max_bytes: longer files are left out.
        package_bytes: most bytes in all (see `PackageText`).
        exclude: names of directories that are left out wherever they occur; those of tests if the package has them.
        suffixes: of files.
        descriptions: also what the metadata say of the package, as `README.md`.

    Raises:
        ValueError: not installed, or nothing to read (not installed by a tool that lists files, for instance).
    """
    check_installed([package])
    found = distribution(package.name)
    excluded = set(exclude) - (_TESTS if package.tests else set())
    texts: dict[str, str] = {}
    left_out: list[SkippedFile] = []
    for path in found.files or ():
        inside = not package.folders or any(path.is_relative_to(folder) for folder in package.folders)
        passed_over = ".." in path.parts or path.parts[0].endswith(".dist-info") or excluded.intersection(path.parts)
        if path.suffix not in suffixes or not inside or passed_over:
            continue
        name = displayable(path.as_posix())
        name = name if path.parts[0] == package.repository else f"{package.repository}/{name}"
        text = take_text(Path(found.locate_file(path)), name, max_bytes)  # type: ignore[arg-type]
        if isinstance(text, SkippedFile):
            left_out.append(text)
        else:
            texts[name] = text
    if descriptions and (said := description_of(found)):
        texts.setdefault(f"{package.repository}/README.md", said)
    texts = _within(texts, package_bytes)
    if not texts:
        why = f" ({describe_skipped(left_out)})" if left_out else ""
        raise ValueError(
            f"no Python file of {package.name!r} counts as text{why}; check `folders`, or install it again"
        )
    record = PackageRecord(
        name=package.name,
        version=found.version,
        licence=licence_of(found),
        files=len(texts),
        num_bytes=sum(len(text.encode("utf-8")) for text in texts.values()),
        held_out=False,
    )
    return [Document(name=name, text=text) for name, text in sorted(texts.items())], record, left_out


def _within(texts: Mapping[str, str], limit: int) -> dict[str, str]:
    """Files of at most `limit` bytes together: folder by folder, so that what is left refers to itself."""

    def key(name: str) -> tuple[bytes, str]:
        return hashlib.sha256(str(PurePosixPath(name).parent).encode("utf-8")).digest(), name

    kept, size = dict[str, str](), 0
    for name in sorted(texts, key=key):
        size += len(texts[name].encode("utf-8"))
        if size > limit:
            break
        kept[name] = texts[name]
    return kept


def description_of(found: Distribution) -> str:
    """What a distribution's metadata say of it at length, usually its README; empty for nothing."""
    text = str(found.metadata.json.get("description", "")).strip()
    return "" if text in ("", "UNKNOWN") else text.replace("\r\n", "\n") + "\n"


def licence_of(found: Distribution) -> str:
    """The licence in a distribution's metadata: its SPDX expression, its classifiers, or the field's first line."""
    data = found.metadata
    expressions = data.get_all("License-Expression")
    if expressions:
        return str(expressions[0])
    classifiers = [
        c.rsplit("::", 1)[-1].strip() for c in data.get_all("Classifier") or [] if c.startswith("License ::")
    ]
    classifiers = [name for name in classifiers if name != "OSI Approved"]
    if classifiers:
        return " AND ".join(classifiers)
    return next(iter(data.get_all("License") or [""])).strip().split("\n")[0]


def is_permissive(licence: str) -> bool:
    """Whether each licence of an expression is known to allow use of the text under no more than attribution.

    `A OR B` is taken as both, which refuses more than it must.
    """
    parts = [part.strip() for part in re.split(r"\b(?:AND|OR|WITH)\b|[()]", licence)]
    names = [part for part in parts if part]
    return bool(names) and all(name in PERMISSIVE for name in names)


def unseen_packages(names: Sequence[str], record: Mapping[str, Any] | None) -> list[Document]:
    """Sources of installed packages that a model was not trained on, to measure it on; named as in training.

    Args:
        names: of distributions.
        record: the model's training text (`text_from_record`); None if it is not known.

    Raises:
        ValueError: a package is not installed or has no source, or the model was trained on it.
    """
    packages = [Package(name=name) for name in dict.fromkeys(names)]
    check_installed(packages)
    text = None if record is None else text_from_record(record)
    trained = {package.repository for package in text.packages} if isinstance(text, PackageText) else set[str]()
    seen = [package.name for package in packages if package.repository in trained]
    if seen:
        raise ValueError(f"the model was trained on {', '.join(seen)}; name packages that it has not seen")
    limits: dict[str, Any] = {"max_bytes": TextFolder.max_bytes, "package_bytes": sys.maxsize}
    return [d for p in packages for d in read_package(p, exclude=PackageText.exclude, **limits)[0]]


def text_from_record(record: Mapping[str, Any]) -> TrainingText:
    """The training text that `training.json` names: the fields of a `TextFolder`, or of a `PackageText`.

    Raises:
        ValueError: other fields, for instance those of a later version.
    """

    def plain(fields: Mapping[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}

    try:
        if "packages" not in record:
            return TextFolder(**plain(record))
        groups = {key: tuple(Package(**plain(p)) for p in record.get(key, ())) for key in ("packages", "whole")}
        return PackageText(**(plain(record) | groups | {"base": TextFolder(**plain(record["base"]))}))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"the record of the training text cannot be read: {error}; give a folder with --text"
        ) from error
