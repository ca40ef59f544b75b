"""Which C++ files make the library: all of them, found and not listed, in the tree and in what is installed from it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from indexshare.ops import native as native_room
from indexshare.ops.native import PACKAGE, best_level, headers, library_name, sources

ROOT = PACKAGE.parent
INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's C++ files alone, which count from now on."""
    for path in (*sources(), *headers()):
        target = tmp_path / path.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    expected = library_name(best_level())
    monkeypatch.setattr(native_room, "PACKAGE", tmp_path)
    assert library_name(best_level()) == expected
    return tmp_path


def test_every_file_that_is_included_is_known() -> None:
    known = {path.resolve() for path in headers()}
    included = {
        (path.parent / name).resolve()
        for path in (*sources(), *headers())
        for name in INCLUDE.findall(path.read_text(encoding="utf-8"))
    }
    assert included == known  # nothing else is read, and no header lies about unused


def test_a_change_of_any_file_makes_another_library(copy: Path) -> None:
    before = library_name(best_level())
    for path in (*sources(), *headers()):
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert library_name(best_level()) != before, path
        path.write_bytes(content)
    assert library_name(best_level()) == before
    for name in ("ops/more.cpp", "step/more.hpp"):
        (copy / name).write_bytes(b"")
        assert library_name(best_level()) != before, name
        (copy / name).unlink()
    (copy / "ops" / "layout.hpp").rename(copy / "step" / "layout.hpp")
    assert library_name(best_level()) != before


def test_what_is_no_source_changes_nothing(copy: Path) -> None:
    """An editor's lock is a link to nowhere; its copy of a file is hidden; a folder is no file."""
    before = library_name(best_level())
    os.symlink("someone@somewhere.1", copy / "ops" / ".#layout.hpp")
    (copy / "ops" / ".layout.hpp.swp.hpp").write_bytes(b"x")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "a.cpp").write_bytes(b"x")
    (copy / "build.cpp").mkdir()
    (copy / "ops" / "layout.hpp~").write_bytes(b"x")
    assert library_name(best_level()) == before


# What a wheel and a source archive take along: setuptools' own answer, without building anything.
PACKAGED = """
import sys
from pathlib import Path
from setuptools import Distribution
distribution = Distribution({"script_name": "setup.py", "src_root": None})
distribution.parse_config_files()
command = distribution.get_command_obj("build_py")
command.ensure_finalized()
for _, folder, _, names in command.data_files:
    for name in names:
        print("file", Path(folder, name).as_posix())
"""


def test_an_installation_has_every_file() -> None:
    pytest.importorskip("setuptools")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PACKAGED], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-2000:]
    packaged = {line.removeprefix("file ") for line in run.stdout.splitlines() if line.startswith("file ")}
    wanted = {path.relative_to(ROOT).as_posix() for path in (*sources(), *headers())}
    assert wanted <= packaged
