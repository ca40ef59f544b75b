"""Python and C++ agree: entry points are declared as they are written, shared fields lie where Python puts them."""

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexshare.ops import native as native_room
from indexshare.ops.binding import ENTRY_POINTS, bind, layout_refusal
from indexshare.ops.native import native, sources
from indexshare.ops.packed.matrix import Matrix

LETTERS = {"int": "i", "int64_t": "q", "float": "f", "double": "d", "void": "v", "const char*": "s"}
WRITTEN = re.compile(r'extern "C"\s+([\w ]+\*?)\s*\b(indexshare_\w+)\(([^)]*)\)')


def letter(declared: str, *, result: bool = False) -> str:
    """The table's letter for a C++ type; as an argument `const char*` is an address like any other."""
    if declared.endswith("*") and not (result and declared == "const char*"):
        return "p"
    return LETTERS[declared]


def written(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """Entry points of a C++ source as the table would have them."""
    for result, name, arguments in WRITTEN.findall(text):
        types = [re.sub(r"\s*\w+$", "", each.strip()) for each in arguments.split(",") if each.strip()]
        yield name, (letter(result.strip(), result=True), "".join(map(letter, types)))


def test_every_entry_point_is_declared_as_it_is_written() -> None:
    found = [pair for path in sources() for pair in written(path.read_text(encoding="utf-8"))]
    declared = {name: (result, arguments.replace(" ", "")) for name, (result, arguments) in ENTRY_POINTS.items()}
    assert dict(found) == declared
    assert all(declared[name] == types for name, types in found)  # where one source repeats another's declaration
    assert len(found) == sum(path.read_text(encoding="utf-8").count('extern "C"') for path in sources())


@pytest.mark.parametrize(
    ("source", "types"),
    [
        ('extern "C" int indexshare_a(int x, const void* y,\n   const int64_t* const* z) {', ("i", "ipp")),
        ('extern "C" void* indexshare_a(int64_t x, const indexshare::Matrix* m, float f, double d);', ("p", "qpfd")),
        ('extern "C" const char* indexshare_a() {', ("s", "")),
        ('extern "C" void indexshare_a(const char* text) {', ("v", "p")),
    ],
)
def test_the_test_reads_every_kind_of_type(source: str, types: tuple[str, str]) -> None:
    assert list(written(source)) == [("indexshare_a", types)]


needs_kernels = pytest.mark.skipif(native().library is None, reason=native().reason)


@needs_kernels
def test_a_call_with_a_wrong_argument_is_refused() -> None:
    library = native().library
    assert library is not None
    with pytest.raises(TypeError, match="at least 9 arguments"):
        library.indexshare_swiglu(1, 2)
    with pytest.raises(ctypes.ArgumentError, match="argument 1"):
        library.indexshare_swiglu(1.5, *range(8))


def matrix_with(*fields: object) -> type[ctypes.Structure]:
    """A structure of that name with other fields."""
    return type("Matrix", (ctypes.Structure,), {"_fields_": fields})


FIELDS = Matrix._fields_
WRONG_ORDER = matrix_with(*FIELDS[:4], FIELDS[5], FIELDS[4], *FIELDS[6:])
SHORTER = matrix_with(*FIELDS[:-1])
NARROWER = matrix_with(*FIELDS[:-1], ("scale_stride", ctypes.c_int32))


@needs_kernels
@pytest.mark.parametrize(
    ("structure", "says"),
    [
        (WRONG_ORDER, "Matrix.inputs is not the same on both sides (C++: 8 bytes at 40, Python: 8 bytes at 32)"),
        (SHORTER, "Matrix is not the same on both sides (C++: 64 bytes at 0, Python: 56 bytes at 0)"),
        (NARROWER, "Matrix.scale_stride is not the same on both sides (C++: 8 bytes at 56, Python: 4 bytes at 56)"),
    ],
)
def test_a_field_in_another_place_is_named(structure: type[ctypes.Structure], says: str) -> None:
    library = native().library
    assert library is not None and layout_refusal(library, "indexshare_packed_layout", (Matrix,)) is None
    assert layout_refusal(library, "indexshare_packed_layout", (structure,)) == says


@needs_kernels
def test_a_library_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexshare.ops.binding.Matrix", SHORTER)
    level = native_room.best_level()
    directory = next(
        folder
        for folder in (native_room.package_directory(), native_room.cache_directory())
        if (folder / native_room.library_name(level)).is_file()
    )
    refused = native_room._load(directory / native_room.library_name(level), level)
    assert refused.library is None and "is not the same on both sides" in refused.reason


def test_a_part_of_the_library_may_be_tried(tmp_path: Path) -> None:
    class Part:
        pass

    assert bind(Part()) is None  # type: ignore[arg-type]
