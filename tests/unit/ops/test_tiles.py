"""The kernels in matrix tiles, on any machine: tiles emulated in C++, and the instructions themselves by traps."""

import os
import platform
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexshare.ops import native as native_room
from indexshare.ops.indexer import cpu_impl as indexer_cpu
from indexshare.ops.indexer import reference as indexer_reference
from indexshare.ops.native import LEVELS, Level, Native, build, processor_features
from indexshare.ops.sparse_mla import cpu_impl as mla_cpu
from indexshare.ops.sparse_mla import reference as mla_reference
from tests.tolerance import TOL
from tests.unit.ops.test_native import check_attention, check_selection

ROOT = Path(__file__).resolve().parents[3]
OPS = ROOT / "indexshare" / "ops"
TRAPS = Path(__file__).parent / "amx_traps.cpp"
AMX = next(level for level in LEVELS if level.name == "amx")
VECTORS = next(level for level in LEVELS if not level.tiles and level.needs <= processor_features())
EMULATED = Level(
    name="emulated", needs=frozenset(), flags=(*VECTORS.flags, "-O1", "-DINDEXSHARE_EMULATE_TILES"), tiles=True
)
# What works in tiles, and the check of it: half of the time that all kernels take to compile.
SOURCES = ("ops/indexer/cpu_impl.cpp", "ops/sparse_mla/cpu_impl.cpp", "ops/tiles_check.cpp")


def build_tiles(directory: Path, level: Level) -> Path:
    """The kernels that know tiles; skips the test where nothing can be compiled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_room, "sources", lambda: [native_room.PACKAGE / name for name in SOURCES])
        try:
            return build(directory, level)
        except OSError as error:
            pytest.skip(str(error))


def use(loaded: Native) -> None:
    """From now on, in a process of its own, the operations run in this library."""
    assert loaded.library is not None, loaded.reason
    indexer_cpu.native = mla_cpu.native = lambda: loaded  # type: ignore[assignment]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The operations run in emulated tiles."""
    loaded = native_room._load(build_tiles(tmp_path_factory.mktemp("tiles"), EMULATED), EMULATED)
    assert loaded.library is not None, loaded.reason
    with pytest.MonkeyPatch.context() as patch:
        for room in (indexer_cpu, mla_cpu):
            patch.setattr(room, "native", lambda: loaded)
        yield


@pytest.mark.usefixtures("emulated")
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6), queries=st.integers(1, 40), heads=st.integers(1, 70), pairs=st.integers(1, 40),
    keys=st.integers(1, 700), topk=st.integers(1, 300), ties=st.booleans(),
)  # fmt: skip
def test_selection_over_shapes(
    seed: int, queries: int, heads: int, pairs: int, keys: int, topk: int, ties: bool
) -> None:
    check_selection(seed, queries, heads, 2 * pairs, keys, topk, ties=ties, dtype=torch.bfloat16)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["q", "weights", "keys"])
def test_not_a_number_is_the_largest_score_as_in_torch(bad: float, where: str) -> None:
    tensors = {
        "q": torch.randint(-2, 3, (6, 3, 8)).bfloat16(),
        "weights": torch.randint(-2, 3, (6, 3)).float(),
        "keys": torch.randint(-2, 3, (400, 8)).bfloat16(),
    }
    tensors[where][1] = bad
    positions = torch.arange(6) * 60 + 99
    expected = indexer_reference.select_topk(**tensors, positions=positions, topk=32)
    assert torch.equal(indexer_cpu.select_topk(**tensors, positions=positions, topk=32), expected)


@pytest.mark.usefixtures("emulated")
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6), queries=st.integers(1, 4), heads=st.integers(1, 70), pairs=st.integers(1, 50),
    part=st.floats(0.1, 1.0), rows=st.integers(1, 300), k=st.integers(1, 200),
)  # fmt: skip
def test_attention_over_shapes(seed: int, queries: int, heads: int, pairs: int, part: float, rows: int, k: int) -> None:
    check_attention(seed, queries, heads, 2 * pairs, 2 * max(1, int(part * pairs)), rows, k, dtype=torch.bfloat16)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("k", [1, 31, 32, 33, 63, 64, 65, 96, 128, 129])
def test_attention_at_the_ends_of_chunks(k: int) -> None:
    check_attention(k, 2, 17, 34, 32, 200, k, dtype=torch.bfloat16)


@pytest.mark.usefixtures("emulated")
def test_a_query_without_rows_gets_zeros() -> None:
    q, pool = torch.randn(3, 5, 24).bfloat16(), torch.randn(9, 24).bfloat16()
    slots = torch.tensor([[-1, -1], [3, -1], [-1, -1]])
    out, lse = mla_cpu.sparse_mla_with_lse(q, pool, slots, 0.3, 16, want_lse=True)
    expected, expected_lse = mla_reference.sparse_mla_with_lse(q, pool, slots, 0.3, 16)
    assert torch.equal(out, expected) and lse is not None
    torch.testing.assert_close(lse, expected_lse, **TOL["log-sum-exp", "float32"].bounds)
    with pytest.raises(IndexError, match="a slot is not a row of the pool, which has 9"):
        mla_cpu.sparse_mla(q, pool, torch.full((3, 4), 9), 0.3, 16)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_attention_to_infinities_and_nan_is_torchs(bad: float) -> None:
    q, pool, slots = torch.randn(3, 4, 24).bfloat16(), torch.randn(50, 24).bfloat16(), torch.randint(50, (3, 40))
    pool[slots[1, 7]] = bad
    expected, _ = mla_reference.sparse_mla_with_lse(q, pool, slots, 0.3, 16)
    actual = mla_cpu.sparse_mla(q, pool, slots, 0.3, 16)
    assert torch.equal(actual.isnan(), expected.isnan()) and bool(actual.isnan().any())
    torch.testing.assert_close(actual, expected, equal_nan=True, **TOL["sparse mla", "bfloat16"].bounds)


@pytest.mark.usefixtures("emulated")
def test_any_number_of_threads_and_any_batch_give_the_same_bits() -> None:
    q, w, keys = torch.randn(40, 5, 40).bfloat16(), torch.randn(40, 5), torch.randn(900, 40).bfloat16()
    positions = torch.arange(860, 900)
    heads, pool = torch.randn(40, 21, 24).bfloat16(), torch.randn(900, 24).bfloat16()

    def everything(rows: slice) -> list[torch.Tensor]:
        slots = indexer_cpu.select_topk(q[rows], w[rows], keys, positions[rows], 64)
        return [slots, mla_cpu.sparse_mla(heads[rows], pool, slots, 0.3, 16)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = everything(slice(None))
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            for actual, wanted in zip(everything(slice(None)), expected, strict=True):
                assert torch.equal(actual, wanted)
        for row in (0, 17, 39):  # one query: its keys are divided among threads
            for actual, wanted in zip(everything(slice(row, row + 1)), expected, strict=True):
                assert torch.equal(actual[0], wanted[row])
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("emulated")
def test_float32_stays_in_vectors() -> None:
    for seed in range(4):
        check_selection(seed, 21, 5, 24, 500, 40, ties=seed % 2 == 0)
        check_attention(seed, 5, 6, 40, 24, 200, 90)


PRODUCT = """
    #include <cstdio>
    #include <cstdlib>
    #include <limits>
    #include "tiles.hpp"
    using namespace indexshare::tiles;
    static uint32_t a[16][16], b[16][16];
    static float c[16][16];
    int main(int count, char** arguments) {
        const int wrong = std::atoi(arguments[1]);
        Shapes shapes;
        const int rows[3] = {3, 3, 5}, columns[3] = {7, 5, 7};  // c, a, b
        for (int n = 0; n < 3; ++n) shapes.rows[n] = rows[n], shapes.row_bytes[n] = 4 * columns[n];
        if (wrong == 2) shapes.rows[1] = 4;
        if (wrong == 3) shapes.row_bytes[1] = 24;
        if (wrong == 4) shapes.rows[2] = 17;
        if (wrong == 5) shapes.row_bytes[7] = 64;
        if (wrong != 1) configure(shapes);
        for (int r = 0; r < 16; ++r) {
            for (int k = 0; k < 16; ++k) {
                a[r][k] = (uint32_t)std::rand() << 1, b[r][k] = (uint32_t)std::rand() << 1;
                if (k % 4) a[r][k] &= 0xbfff3fffu, b[r][k] &= 0xbfffbfffu;  // mostly below 2
            }
        }
        a[1][1] = 0x00010001u, b[1][1] = 0x40007f00u;  // no full mantissa: counts as zero
        load<1>(a, 64), load<2>(b, 64);
        if (wrong == 6) load<3>(a, 64);
        zero<0>();
        dot<0, 1, 2>(), dot<0, 1, 2>();
        store<0>(c, 64);
        release();
        if (wrong == 7) zero<0>();
        for (const auto* m : {a, b, (uint32_t(*)[16])c})
            for (int r = 0; r < 16; ++r)
                for (int k = 0; k < 16; ++k) std::printf("%08x ", m[r][k]);
    }
"""


def expected_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One product by the manual: float64 holds a product of two bfloat16 exactly, and the sum's first rounding is
    float32's except in cases too rare to meet here."""
    with np.errstate(all="ignore"):
        sums = np.zeros((2, 3, 7), np.float32)
        for k in range(5):
            for half in range(2):
                left = flush((a[:3, k] << 16 if half == 0 else a[:3, k] & 0xFFFF0000).astype(np.uint32))
                right = flush((b[k, :7] << 16 if half == 0 else b[k, :7] & 0xFFFF0000).astype(np.uint32))
                wide = sums[half].astype(np.float64) + np.outer(left.astype(np.float64), right.astype(np.float64))
                sums[half] = flush(wide.astype(np.float32).view(np.uint32))
        return flush((sums[0] + sums[1]).view(np.uint32))


def flush(bits: np.ndarray) -> np.ndarray:
    """Floats from their bits, what has no full mantissa as zero."""
    return np.where(bits & 0x7F800000, bits, bits & 0x80000000).astype(np.uint32).view(np.float32)


def test_the_emulation_is_the_manuals_and_stops_where_the_processor_does(tmp_path: Path) -> None:
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, program = tmp_path / "product.cpp", tmp_path / "product"
    source.write_text(textwrap.dedent(PRODUCT))
    flags = ("-std=c++17", "-O1", "-Wno-psabi", "-DINDEXSHARE_EMULATE_TILES", f"-I{OPS}")
    subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True, capture_output=True)
    good = subprocess.run([program, "0"], capture_output=True, text=True, check=True)
    words = np.array([int(word, 16) for word in good.stdout.split()], np.uint32).reshape(3, 16, 16)
    with np.errstate(all="ignore"):
        one = expected_product(words[0], words[1])
        expected = flush((flush(one.view(np.uint32)) + one).astype(np.float32).view(np.uint32))
    np.testing.assert_array_equal(words[2][:3, :7].copy().view(np.float32), expected)
    assert not words[2][3:].any() and not words[2][:, 7:].any()
    reasons = ("before they were configured", "rows of the product", "depths differ", "at most 16 rows",
               "columns without rows", "without a shape", "before they were configured")  # fmt: skip
    for number, reason in enumerate(reasons, 1):
        bad = subprocess.run([program, str(number)], capture_output=True, text=True, check=False)
        assert bad.returncode < 0 and reason in bad.stderr, (number, bad.stderr)


ALONE = """
    import ctypes, os, pathlib, sys, torch
    from indexshare.ops import native as room
    from tests.unit.ops import test_tiles as tests
    tests.use(room._load(pathlib.Path(sys.argv[1]), tests.EMULATED))
    torch.set_num_threads(2)
    for seed in range(6):
        tests.check_selection(seed, 19, 3 + 7 * seed, 8 + 10 * seed, 333, 40, ties=seed % 2 == 0, dtype=torch.bfloat16)
        tests.check_attention(seed, 3, 5 + 11 * seed, 20 + 10 * seed, 20, 90, 30 + 20 * seed, dtype=torch.bfloat16)
    tests.test_any_number_of_threads_and_any_batch_give_the_same_bits()
    tests.test_attention_to_infinities_and_nan_is_torchs(torch.inf)
    tests.test_not_a_number_is_the_largest_score_as_in_torch(torch.nan, "keys")
    if len(sys.argv) > 2:
        answered = ctypes.CDLL(sys.argv[2]).amx_traps_answered
        answered.restype = ctypes.c_long
        assert answered() > 10_000, answered()
    print("clean")
"""


def run_alone(library: Path, *arguments: Path, **environment: str) -> str:
    """What the checks say in a process of its own, in which something is loaded before everything else."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ALONE), str(library), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    flags = (*EMULATED.flags, "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    library = build_tiles(tmp_path, Level(name="sanitized", needs=frozenset(), flags=flags))
    names = ("libasan.so", "libubsan.so")
    found = (subprocess.run(["c++", f"-print-file-name={n}"], capture_output=True, text=True) for n in names)
    preload = ":".join(f.stdout.strip() for f in found)
    assert "clean" in run_alone(library, LD_PRELOAD=preload, ASAN_OPTIONS="detect_leaks=0")


@pytest.mark.slow
def test_tiles_need_no_vector_instructions_to_be_emulated(tmp_path: Path) -> None:
    plain = Level(name="plain", needs=frozenset(), flags=("-O1", "-DINDEXSHARE_EMULATE_TILES"))
    assert "clean" in run_alone(build_tiles(tmp_path, plain))


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux" or platform.machine() != "x86_64", reason="Linux on x86-64 only")
@pytest.mark.skipif(not processor_features() >= AMX.needs - {"amx_tile", "amx_bf16"}, reason="needs AVX-512 bfloat16")
@pytest.mark.skipif("amx_tile" in processor_features(), reason="this processor has tiles of its own")
def test_the_instructions_themselves_answered_by_traps(tmp_path: Path) -> None:
    """The library as users get it, optimised, with every tile instruction decoded and emulated as it comes along."""
    library, traps = build_tiles(tmp_path, AMX), tmp_path / "traps.so"
    flags = ("-std=c++17", "-O2", "-fPIC", "-shared", "-Wno-psabi", *VECTORS.flags, f"-I{OPS}")
    subprocess.run(["c++", *flags, str(TRAPS), "-ldl", "-o", str(traps)], check=True, capture_output=True)
    assert "clean" in run_alone(library, traps, LD_PRELOAD=str(traps))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "right", "wrong", "reason"),
    [
        ("tiles_emulated.hpp", "as_number(right << 16)", "as_number(right & 0xffff0000u)", "the indexer in tiles"),
        ("indexer/tile_scores.hpp", "* weights_[row]", "* weights_[0]", "the indexer in tiles"),
        (
            "sparse_mla/head_tiles.hpp",
            "if (weigh(padded)) rescale(values, sums);",
            "weigh(padded);",
            "sparse attention",
        ),
        ("sparse_mla/head_tiles.hpp", "transpose(square);", "", "sparse attention"),
        ("sparse_mla/head_tiles.hpp", "leave_out(padded, count);", "", "sparse attention"),
    ],
)
def test_the_check_at_load_finds_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, right: str, wrong: str, reason: str
) -> None:
    shutil.copytree(OPS, tmp_path / "ops", ignore=shutil.ignore_patterns("lib", "__pycache__"))
    text = (tmp_path / "ops" / file).read_text(encoding="utf-8")
    assert text.count(right) == 1
    (tmp_path / "ops" / file).write_text(text.replace(right, wrong), encoding="utf-8")
    monkeypatch.setattr(native_room, "PACKAGE", tmp_path)
    refused = native_room._load(build_tiles(tmp_path, EMULATED), EMULATED)
    assert refused.library is None and reason in refused.reason
