"""What Python source imports, which file of a tree that is, and what it defines. Plain text rules: they work on text
cut anywhere."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

_IMPORT = re.compile(r"^\s*(?:from\s+(\.*[\w.]*)\s+import\s+(\([^)]*\)?|[^#\n]*)|import\s+([^#\n]+))", re.MULTILINE)

_DEFINITION = re.compile(
    r"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+([A-Za-z_]\w*)|^([A-Za-z_]\w*)[ \t]*(?::[^=\n]+)?=[^=]"
    r"|\bself\.([A-Za-z_]\w*)[ \t]*=[^=]",
    re.MULTILINE,
)
_LEAST_LETTERS = 5  # shorter names are guessed, or everywhere
_COMMON = frozenset({*dir(builtins), *keyword.kwlist, *keyword.softkwlist})


def imported_modules(text: str, target: PurePosixPath) -> set[str]:
    """Dotted names that Python source imports; relative ones are resolved against the target's path.

    `from a import b` gives both `a` and `a.b`: b may be a module.
    """
    found: set[str] = set()
    for match in _IMPORT.finditer(text):
        source, names, plain = match.groups()
        if plain is not None:
            found.update(part.split(" as ")[0].strip() for part in plain.split(","))
            continue
        dots = len(source) - len(source.lstrip("."))
        base = source.lstrip(".")
        if dots:
            above = target.parent.parts[: len(target.parent.parts) - dots + 1]
            base = ".".join([*above, base] if base else above)
        found.add(base)
        for name in names.strip("() \n").split(","):
            word = name.split(" as ")[0].strip()
            if word.isidentifier():
                found.add(f"{base}.{word}" if base else word)
    return {name for name in found if name}


def module_parts(path: PurePosixPath) -> tuple[str, ...]:
    """Parts of the dotted name of a Python file in its tree; empty for other files."""
    if path.suffix != ".py":
        return ()
    parts = path.with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def is_module(path: PurePosixPath, dotted: str) -> bool:
    """Whether a file is the module of this name, at the root of the tree or below (`src/pkg/mod.py`)."""
    wanted = tuple(dotted.split("."))
    return bool(parts := module_parts(path)) and parts[-len(wanted) :] == wanted


def imported_files(names: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
    """Of each file, which other files of the same tree it imports, as sorted indices.

    A dotted name that several files answer to (`a/util.py` and `b/util.py` to `util`) is the one whose path is the
    shortest; equal ones are all taken.
    """
    paths = [PurePosixPath(name) for name in names]
    by_module: dict[tuple[str, ...], list[int]] = {}
    for index, path in enumerate(paths):
        parts = module_parts(path)
        for first in range(len(parts)):
            by_module.setdefault(parts[first:], []).append(index)
    result = []
    for index, (path, text) in enumerate(zip(paths, texts, strict=True)):
        needed: set[int] = set()
        for dotted in imported_modules(text, path):
            found = by_module.get(tuple(dotted.split(".")), [])
            least = min((len(paths[i].parts) for i in found), default=0)
            needed.update(i for i in found if len(paths[i].parts) == least)
        result.append(sorted(needed - {index}))
    return result


def definitions(text: str) -> set[str]:
    """Names that Python source defines: functions, classes, module variables, attributes of self; no common words."""
    found = {name for groups in _DEFINITION.findall(text) for name in groups if name}
    return {name for name in found if len(name) >= _LEAST_LETTERS and name not in _COMMON and not name.startswith("__")}
