"""Builds and loads the C++ kernels, and says why when it cannot. Needs nothing but Python and a C++17 compiler.

The sources lie beside the references they must agree with. They are compiled for one level of this processor's
instructions into a shared library with plain C functions, so that no version of torch or Python matters. Its name
carries a hash of the sources and flags: a library is either the right one or not found. Installation builds it into
the package (`setup.py`); on a machine with other instructions, the first use builds it into the user's cache.

Matrix tiles (Intel AMX) are used only after the library has shown on this machine that it agrees with itself without
them; otherwise the next level answers, and says why.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_log = logging.getLogger(__name__)
PACKAGE = _HERE.parent
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-pthread", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
_BUILD_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Level:
    """A set of instructions to compile for: `needs` are names of processor features, all of them required.

    `tiles`: the library works in matrix tiles, and must pass its own check before it is used.
    """

    name: str
    needs: frozenset[str]
    flags: tuple[str, ...]
    tiles: bool = False


_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512")
_AVX512_NEEDS = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"})
_BF16 = (*_AVX512, "-mavx512bf16", "-mavx512vnni")
_BF16_NEEDS = _AVX512_NEEDS | {"avx512_bf16", "avx512_vnni"}  # every processor with the one has the other
# Best first; the last one runs anywhere (on ARM the base instructions include NEON).
LEVELS = (
    Level(
        name="amx",
        needs=_BF16_NEEDS | {"amx_tile", "amx_bf16"},
        flags=(*_BF16, "-mamx-tile", "-mamx-bf16"),
        tiles=True,
    ),
    Level(name="avx512bf16", needs=_BF16_NEEDS, flags=_BF16),
    Level(name="avx512", needs=_AVX512_NEEDS, flags=_AVX512),
    Level(name="avx2", needs=frozenset({"avx2", "fma"}), flags=("-mavx2", "-mfma")),
    Level(name="base", needs=frozenset(), flags=()),
)


@dataclass(frozen=True, kw_only=True)
class Native:
    """The kernels, or why there are none.

    Attributes:
        library: loaded, or None.
        level: instructions they were compiled for, `""` without them.
        reason: one sentence for `indexshare doctor`.
    """

    library: ctypes.CDLL | None
    level: str
    reason: str


@cache
def processor_features() -> frozenset[str]:
    """Names of instruction sets as Linux spells them; empty where the system does not list them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


_highest = 0  # index of the best level that may be used: see `limit_level`


def limit_level(name: str) -> None:
    """From now on use the kernels of this level, or of a lower one if those cannot be used.

    Raises:
        ValueError: there is no such level, or this processor lacks instructions that it needs.
    """
    global _highest
    names = [level.name for level in LEVELS]
    if name not in names:
        raise ValueError(f"no level of the C++ kernels is called {name!r}; there are {', '.join(names)}")
    missing = LEVELS[names.index(name)].needs - processor_features()
    if missing:
        raise ValueError(f"this processor has no {', '.join(sorted(missing))}, which level {name} needs")
    _highest = names.index(name)
    native.cache_clear()


def usable_levels(features: frozenset[str] | None = None) -> list[Level]:
    """The best level whose needs this processor meets; below one with tiles, the next, in case it fails its check."""
    have = processor_features() if features is None else features
    levels = [level for level in LEVELS[_highest:] if level.needs <= have]
    return levels[: 1 + next(n for n, level in enumerate(levels) if not level.tiles)]


def best_level(features: frozenset[str] | None = None) -> Level:
    """The first level whose needs this processor meets."""
    return usable_levels(features)[0]


def sources() -> list[Path]:
    """The C++ files of the package, wherever they lie, in a fixed order."""
    return _files(".cpp")


def headers() -> list[Path]:
    """The headers that they include, in a fixed order."""
    return _files(".hpp")


def _files(suffix: str) -> list[Path]:
    """Hidden ones are not ours: editors leave copies, and locks that lead nowhere."""
    return sorted(
        path
        for path in PACKAGE.rglob("*" + suffix)
        if not any(part.startswith(".") for part in path.relative_to(PACKAGE).parts) and path.is_file()
    )


def library_name(level: Level) -> str:
    """File name of the library for a level: another one as soon as a source or flag changes."""
    digest = hashlib.sha256(repr((level.flags, _FLAGS)).encode())
    for path in (*sources(), *headers()):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return f"libindexshare-{platform.system()}-{platform.machine()}-{level.name}-{digest.hexdigest()[:12]}.so".lower()


def package_directory() -> Path:
    """Where installation puts the library."""
    return _HERE / "lib"


def cache_directory() -> Path:
    """Where the first use puts it when the package has none for this processor."""
    return Path.home() / ".cache" / "indexshare"


def build(directory: Path, level: Level) -> Path:
    """Compile the kernels into `directory`; nothing is left behind when that fails.

    Raises:
        OSError: no compiler, or it failed, or the directory cannot be written; the message says which.
    """
    compiler = next((found for name in _COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError(f"no C++ compiler found (looked for {', '.join(_COMPILERS)})")
    directory.mkdir(parents=True, exist_ok=True)
    _log.warning("compiling the C++ kernels for %s, which takes about half a minute; later runs find them", level.name)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        try:
            library = _compile(compiler, Path(scratch), level, threads=True)
        except OSError:  # for instance a compiler without OpenMP: one thread is better than none
            library = _compile(compiler, Path(scratch), level, threads=False)
        target = directory / library_name(level)
        os.replace(library, target)
    return target


def _compile(compiler: str, scratch: Path, level: Level, *, threads: bool) -> Path:
    """Objects with OpenMP calls, linked without naming its runtime: at load they find the one torch brought.

    A second runtime would keep its own threads spinning against torch's on the same cores.
    """
    openmp = ("-fopenmp",) if threads else ("-Wno-unknown-pragmas",)
    objects, running = [], []
    for number, source in enumerate(sources()):
        objects.append(scratch / f"{number}.o")
        command = [compiler, *_FLAGS, *level.flags, *openmp, "-c", str(source), "-o", str(objects[-1])]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    outputs = [process.communicate(timeout=_BUILD_SECONDS)[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        if process.returncode:
            raise OSError(f"{compiler} failed: {_first_error(output)}")
    library = scratch / "library.so"
    undefined = ("-Wl,-undefined,dynamic_lookup",) if sys.platform == "darwin" else ()
    link = subprocess.run(
        [compiler, "-shared", "-pthread", *undefined, *map(str, objects), "-o", str(library)],
        capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False,
    )  # fmt: skip
    if link.returncode:
        raise OSError(f"{compiler} failed to link: {_first_error(link.stderr)}")
    return library


def _first_error(output: str) -> str:
    lines = [line for line in output.splitlines() if "error" in line] or output.splitlines() or ["no message"]
    return lines[0].strip()


def install(directory: Path) -> list[Path]:
    """Build the libraries that `native` may need on this machine, and return those that could be built.

    Raises:
        OSError: the one that works without tiles could not be built, and why.
    """
    built = []
    for level in usable_levels():
        try:
            built.append(build(directory, level))
        except (OSError, subprocess.SubprocessError):
            if not level.tiles:  # an old compiler may not know them, and need not
                raise
    return built


@cache
def native() -> Native:
    """The kernels for this processor: from the package, from the user's cache, or built there now."""
    refused: list[str] = []
    for level in usable_levels():
        found = _find(level)
        if found.library is not None or not level.tiles:
            break
        refused.append(f"not {level.name}: {found.reason}")
    return replace(found, reason="; ".join((found.reason, *refused)))


def _find(level: Level) -> Native:
    name = library_name(level)
    for directory in (package_directory(), cache_directory()):
        if (directory / name).is_file():
            return _load(directory / name, level)
    try:
        return _load(build(cache_directory(), level), level)
    except (OSError, subprocess.SubprocessError) as error:
        return Native(library=None, level="", reason=f"not built: {error}")


def _load(path: Path, level: Level) -> Native:
    try:
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # OpenMP's symbols are not in the process yet
            _load_openmp()
            library = ctypes.CDLL(str(path))
    except OSError as error:
        return Native(library=None, level="", reason=f"{path.name} does not load: {error}")
    from indexshare.ops.binding import bind  # not above: installation runs this file alone

    refusal = bind(library) or (_tiles_refusal(library) if level.tiles else None)
    if refusal is not None:
        return Native(library=None, level="", reason=refusal)
    return Native(library=library, level=level.name, reason=f"C++ kernels for {level.name}")


def _tiles_refusal(library: ctypes.CDLL) -> str | None:
    """Ask the system for tiles, then the library to compare its kernels: why they must not be used, or None."""
    refusal: bytes | None = library.indexshare_check_tiles()
    return None if refusal is None else refusal.decode(errors="replace")


def _load_openmp() -> None:
    """Make OpenMP's functions visible to the kernels: torch's own copy if it brings one, else the system's."""
    torch = sys.modules.get("torch")
    beside = [] if torch is None else sorted((Path(str(torch.__file__)).parent / "lib").glob("libgomp*.so*"))
    for candidate in (*map(str, beside), "libgomp.so.1"):
        try:
            ctypes.CDLL(candidate, mode=ctypes.RTLD_GLOBAL)
            return
        except OSError:
            continue
