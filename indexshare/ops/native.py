"""Builds and loads the C++ kernels, and says why when it cannot. Needs nothing but Python and a C++17 compiler.

The sources lie beside the references they must agree with. They are compiled for one level of this processor's
instructions into a shared library with plain C functions, so that no version of torch or Python matters. Its name
carries a hash of the sources and flags: a library is either the right one or not found. Installation builds it into
the package (`setup.py`); on a machine with other instructions, the first use builds it into the user's cache.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
_SOURCES = (
    "indexer/cpu_impl.cpp",
    "sparse_mla/cpu_impl.cpp",
    "sparse_mla/cpu_backward.cpp",
    "rows/cpu_impl.cpp",
    "experts/cpu_impl.cpp",
    "decode/cpu_impl.cpp",
)
_HEADERS = (
    "simd.hpp",
    "vectors.hpp",
    "indexer/candidates.hpp",
    "experts/choose.hpp",
    "experts/products.hpp",
    "sparse_mla/head_lanes.hpp",
    "sparse_mla/cpu_tiles.hpp",
    *(f"decode/{name}.hpp" for name in ("model", "quantized", "products", "step", "attention")),
    "decode/feed_forward.hpp",
)
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
_BUILD_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Level:
    """A set of instructions to compile for: `needs` are names of processor features, all of them required."""

    name: str
    needs: frozenset[str]
    flags: tuple[str, ...]


_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512")
_AVX512_NEEDS = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma"})
# Best first; the last one runs anywhere (on ARM the base instructions include NEON).
LEVELS = (
    Level(
        name="avx512bf16",  # every processor with the one has the other
        needs=_AVX512_NEEDS | {"avx512_bf16", "avx512_vnni"},
        flags=(*_AVX512, "-mavx512bf16", "-mavx512vnni"),
    ),
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


def best_level(features: frozenset[str] | None = None) -> Level:
    """The first level whose needs this processor meets."""
    have = processor_features() if features is None else features
    return next(level for level in LEVELS if level.needs <= have)


def library_name(level: Level) -> str:
    """File name of the library for a level: another one as soon as a source or flag changes."""
    digest = hashlib.sha256(repr((level.flags, _FLAGS)).encode())
    for name in (*_SOURCES, *_HEADERS):
        digest.update((_HERE / name).read_bytes())
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
    for number, source in enumerate(_SOURCES):
        objects.append(scratch / f"{number}.o")
        command = [compiler, *_FLAGS, *level.flags, *openmp, "-c", str(_HERE / source), "-o", str(objects[-1])]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    outputs = [process.communicate(timeout=_BUILD_SECONDS)[0] for process in running]
    for process, output in zip(running, outputs, strict=True):
        if process.returncode:
            raise OSError(f"{compiler} failed: {_first_error(output)}")
    library = scratch / "library.so"
    undefined = ("-Wl,-undefined,dynamic_lookup",) if sys.platform == "darwin" else ()
    link = subprocess.run(
        [compiler, "-shared", *undefined, *map(str, objects), "-o", str(library)],
        capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False,
    )  # fmt: skip
    if link.returncode:
        raise OSError(f"{compiler} failed to link: {_first_error(link.stderr)}")
    return library


def _first_error(output: str) -> str:
    lines = [line for line in output.splitlines() if "error" in line] or output.splitlines() or ["no message"]
    return lines[0].strip()


@cache
def native() -> Native:
    """The kernels for this processor: from the package, from the user's cache, or built there now."""
    level = best_level()
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
    return Native(library=library, level=level.name, reason=f"C++ kernels for {level.name}")


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
