"""Imports of Python source: found in cut text, resolved within a tree."""

from pathlib import PurePosixPath

import pytest

from indexshare.text.imports import definitions, imported_files, imported_modules, is_module


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import os", {"os"}),
        ("import os.path as p, sys", {"os.path", "sys"}),
        ("from a.b import c as d, e", {"a.b", "a.b.c", "a.b.e"}),
        ("    from .text import Text", {"pkg.sub.text", "pkg.sub.text.Text"}),
        ("from . import text", {"pkg.sub", "pkg.sub.text"}),
        ("from ..core import run", {"pkg.core", "pkg.core.run"}),
        ("from a import (\n    b,\n    c,\n)", {"a", "a.b", "a.c"}),
        ("from a import (\n    b,\n    c", {"a", "a.b", "a.c"}),
        ("from a import *", {"a"}),
        ("x = 'import os'\nimportant = 1", set()),
    ],
)
def test_imports_are_found_in_cut_text(text: str, expected: set[str]) -> None:
    assert imported_modules(text, PurePosixPath("pkg/sub/t.py")) == expected


@pytest.mark.parametrize(
    ("path", "dotted", "yes"),
    [
        ("a/b.py", "a.b", True),
        ("src/a/b.py", "a.b", True),
        ("a/b/__init__.py", "a.b", True),
        ("xa/b.py", "a.b", False),
        ("a/b.txt", "a.b", False),
        ("__init__.py", "a", False),
    ],
)
def test_module_names_match_paths(path: str, dotted: str, yes: bool) -> None:
    assert is_module(PurePosixPath(path), dotted) == yes


def test_files_of_a_tree() -> None:
    texts = {
        "a/__init__.py": "from a.core import x",
        "a/core.py": "import util, os\nfrom . import nothing",
        "a/util.py": "import a.core",
        "util.py": "from util import itself",
        "b/deep/core.py": "from ..deep import core as c\nfrom a.core import y",
        "notes.txt": "import util",
    }
    names = list(texts)
    found = [[names[i] for i in row] for row in imported_files(names, list(texts.values()))]
    assert found == [
        ["a/core.py"],
        ["a/__init__.py", "util.py"],
        ["a/core.py"],
        [],
        ["a/core.py"],
        ["util.py"],
    ]


def test_definitions() -> None:
    text = "class Widget:\n    def __init__(self):\n        self.colour = 1\n    async def paint(self): ...\n"
    assert definitions(text + "LIMIT: int = 3\nabc = 1\nprint = 2\nvalue == 4\n") == {
        "Widget",
        "colour",
        "paint",
        "LIMIT",
    }
