"""The C++ kernels: equal to the reference over shapes, layouts, ties, infinities and NaN; any threads, same bits."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indexshare import ops
from indexshare.ops import native as native_room
from indexshare.ops import operations
from indexshare.ops.indexer import cpu_impl as indexer_cpu
from indexshare.ops.indexer import reference as indexer_reference
from indexshare.ops.native import LEVELS, Level, best_level, build, library_name, native, processor_features
from indexshare.ops.sparse_mla import cpu_impl as mla_cpu
from indexshare.ops.sparse_mla import reference as mla_reference
from tests.tolerance import TOL

pytestmark = pytest.mark.skipif(native().library is None, reason=native().reason)
RUNNABLE = [level for level in LEVELS if level.needs <= processor_features()]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the libraries of other levels, built once each."""
    return tmp_path_factory.mktemp("native")


def check_selection(
    seed: int, queries: int, heads: int, dim: int, keys: int, topk: int, *, ties: bool,
    dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """The kernel against the float32 reference, on keys that lie apart in a larger, odd-aligned buffer."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((queries, heads, dim), (queries, heads), (keys, dim))
    if ties:
        q, w, k = (torch.randint(-2, 3, s, generator=generator).float() for s in shapes)
    else:
        q, w, k = (torch.randn(s, generator=generator).to(dtype).float() for s in shapes)
    storage = torch.empty(keys, dim + 3, dtype=dtype).fill_(torch.nan)
    storage[:, 1 : dim + 1] = k
    positions = torch.randint(keys, (queries,), generator=generator)
    actual = indexer_cpu.select_topk(q.to(dtype), w, storage[:, 1 : dim + 1], positions, topk)
    expected = indexer_reference.select_topk(q, w, k, positions, topk)
    if ties:  # small integers are exact, so the choice is too
        assert torch.equal(actual, expected)
        return
    assert torch.equal(actual >= 0, expected >= 0)
    assert bool((actual.diff(dim=1)[actual[:, 1:] >= 0] > 0).all())
    assert bool((actual <= positions[:, None]).all())
    scores = indexer_reference.index_scores(q, w, k)
    mass = [scores.gather(1, c.clamp_min(0)).masked_fill(c < 0, 0).sort(1).values for c in (actual, expected)]
    torch.testing.assert_close(*mass, **TOL["selected score mass", "float32"].bounds)


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10**6), queries=st.integers(1, 40), heads=st.integers(1, 9), dim=st.integers(1, 40),
    keys=st.integers(1, 900), topk=st.integers(1, 300), ties=st.booleans(),
)  # fmt: skip
def test_selection_over_shapes(seed: int, queries: int, heads: int, dim: int, keys: int, topk: int, ties: bool) -> None:
    check_selection(seed, queries, heads, dim, keys, topk, ties=ties)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.usefixtures("threads")
def test_one_query_divides_its_keys_among_threads(count: int) -> None:
    torch.set_num_threads(count)
    check_selection(count, 1, 4, 16, 20_000, 256, ties=True)
    check_selection(count, 2, 8, 64, 9_000, 512, ties=False)


def test_rising_and_falling_scores() -> None:
    """Every key beats the threshold, or none after the first."""
    q, w, positions = torch.ones(1, 1, 2), torch.ones(1, 1), torch.tensor([4999])
    for keys in (torch.arange(5000.0), torch.arange(5000.0).flip(0)):
        rows = keys[:, None].expand(-1, 2).contiguous()
        expected = indexer_reference.select_topk(q, w, rows, positions, 100)
        assert torch.equal(indexer_cpu.select_topk(q, w, rows, positions, 100), expected)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["q", "weights", "keys"])
def test_not_a_number_is_the_largest_score_as_in_torch(bad: float, where: str) -> None:
    tensors = {
        "q": torch.randint(-2, 3, (6, 3, 8)).float(),
        "weights": torch.randint(-2, 3, (6, 3)).float(),
        "keys": torch.randint(-2, 3, (400, 8)).float(),
    }
    tensors[where][1] = bad
    positions = torch.arange(6) * 60 + 99
    expected = indexer_reference.select_topk(**tensors, positions=positions, topk=32)
    assert torch.equal(indexer_cpu.select_topk(**tensors, positions=positions, topk=32), expected)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf])
@pytest.mark.parametrize("heads", [1, 3, 8])
def test_an_infinite_key_is_the_largest_or_nothing(bad: float, heads: int) -> None:
    q, keys = torch.randint(1, 4, (6, heads, 8)).float(), torch.randint(-2, 3, (400, 8)).float()
    keys[7, 3] = bad
    weights, positions = torch.rand(6, heads) + 0.1, torch.arange(6) * 60 + 99
    expected = indexer_reference.select_topk(q, weights, keys, positions, 32)
    actual = indexer_cpu.select_topk(q, weights, keys, positions, 32)
    assert torch.equal((actual == 7).any(1), (expected == 7).any(1))
    assert bool((actual == 7).any(1).all()) == (bad > 0)


def test_bfloat16_selects_the_mass_of_the_reference() -> None:
    q, w, k = torch.randn(64, 8, 64).bfloat16(), torch.randn(64, 8), torch.randn(4096, 64).bfloat16()
    positions = torch.arange(4032, 4096)
    scores = indexer_reference.index_scores(q, w, k)
    actual, expected = (
        scores.gather(1, f(q, w, k, positions, 256)).sum()
        for f in (indexer_cpu.select_topk, indexer_reference.select_topk)
    )
    assert actual >= 0.999 * expected


def check_attention(
    seed: int, queries: int, heads: int, width: int, values: int, rows: int, k: int,
    *, dtype: torch.dtype = torch.float32,
) -> None:  # fmt: skip
    """The kernel against the reference, on a pool whose rows lie apart; what is not chosen is NaN."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(queries, heads, width, generator=generator).to(dtype)
    pool = torch.randn(rows, width, generator=generator).to(dtype)
    slots = torch.randint(-1, rows, (queries, k), generator=generator)
    unused = torch.ones(rows, dtype=torch.bool)
    unused[slots[slots >= 0]] = False
    pool[unused] = torch.nan
    storage = torch.full((rows, width + 5), torch.nan, dtype=dtype)
    storage[:, 1 : width + 1] = pool
    expected, expected_lse = mla_reference.sparse_mla_with_lse(q, pool, slots, 0.3, values)
    actual, lse = mla_cpu.sparse_mla_with_lse(q, storage[:, 1 : width + 1], slots, 0.3, values, want_lse=True)
    torch.testing.assert_close(actual, expected, **TOL["sparse mla", str(dtype)[6:]].bounds)
    assert lse is not None
    torch.testing.assert_close(lse, expected_lse, **TOL["log-sum-exp", "float32"].bounds)


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10**6), queries=st.integers(1, 9), heads=st.integers(1, 19), width=st.integers(1, 70),
    part=st.floats(0.1, 1.0), rows=st.integers(1, 300), k=st.integers(1, 200),
)  # fmt: skip
def test_attention_over_shapes(seed: int, queries: int, heads: int, width: int, part: float, rows: int, k: int) -> None:
    check_attention(seed, queries, heads, width, max(1, int(part * width)), rows, k)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_attention_to_infinities_and_nan_is_torchs(bad: float) -> None:
    q, pool, slots = torch.randn(3, 4, 24), torch.randn(50, 24), torch.randint(50, (3, 40))
    pool[slots[1, 7]] = bad
    expected, _ = mla_reference.sparse_mla_with_lse(q, pool, slots, 0.3, 16)
    actual = mla_cpu.sparse_mla(q, pool, slots, 0.3, 16)
    assert torch.equal(actual.isnan(), expected.isnan()) and bool(actual.isnan().any())
    torch.testing.assert_close(actual, expected, equal_nan=True, **TOL["sparse mla", "float32"].bounds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("threads")
def test_any_number_of_threads_and_any_batch_give_the_same_bits(dtype: torch.dtype) -> None:
    q, w, keys = torch.randn(40, 4, 32).to(dtype), torch.randn(40, 4), torch.randn(700, 32).to(dtype)
    positions = torch.arange(660, 700)
    heads, pool, grad = (torch.randn(*s).to(dtype) for s in ((40, 4, 24), (700, 24), (40, 4, 16)))

    def everything(rows: slice) -> list[torch.Tensor]:
        slots = indexer_cpu.select_topk(q[rows], w[rows], keys, positions[rows], 64)
        out = mla_cpu.sparse_mla(heads[rows], pool, slots, 0.3, 16)
        return [slots, out, *mla_cpu.sparse_mla_backward(heads[rows], pool, slots, out, grad[rows], 0.3)]

    torch.set_num_threads(1)
    expected = everything(slice(None))
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        for actual, wanted in zip(everything(slice(None)), expected, strict=True):
            assert torch.equal(actual, wanted)
    for row in (0, 17, 39):
        for actual, wanted in zip(everything(slice(row, row + 1))[:3], expected[:3], strict=True):
            assert torch.equal(actual[0], wanted[row])


def test_calls_that_do_not_fit_are_refused() -> None:
    q, w, keys = torch.randn(2, 3, 8), torch.randn(2, 3), torch.randn(9, 8)
    with pytest.raises(ValueError, match=r"expected \[Q, H, D\], \[Q, H\], \[T, D\], \[Q\]"):
        indexer_cpu.select_topk(q, w[:1], keys, torch.tensor([1, 2]), 4)
    with pytest.raises(ValueError, match="positions reach from 1 to 9, keys to 9"):
        indexer_cpu.select_topk(q, w, keys, torch.tensor([1, 9]), 4)
    with pytest.raises(ValueError, match=r"expected \[Q, A, R\], \[S, R\], \[Q, k\]"):
        mla_cpu.sparse_mla(q, keys, torch.zeros(1, 4, dtype=torch.int64), 0.3, 4)
    with pytest.raises(IndexError, match="a slot is not a row of the pool, which has 9"):
        mla_cpu.sparse_mla(q, keys, torch.full((2, 4), 9), 0.3, 4)


def test_dispatch_takes_torch_where_the_kernels_cannot_help() -> None:
    q, w, keys, at = torch.randn(2, 3, 8), torch.randn(2, 3), torch.randn(9, 8), torch.tensor([7, 8])
    assert indexer_cpu.unsupported(q, w, keys, at, 4) is None
    assert "float64" in str(indexer_cpu.unsupported(q.double(), w.double(), keys.double(), at, 4))
    odd = torch.randn(2, 3, 7).bfloat16()
    assert indexer_cpu.unsupported(odd, w, keys[:, :7].bfloat16(), at, 4) == "odd width in bfloat16"
    assert mla_cpu.unsupported(odd, keys[:, :7].bfloat16(), at[:, None], 0.3, 4) == "odd width in bfloat16"
    chosen = ops.select_topk(q.double(), w.double(), keys.double(), at, 4)
    assert torch.equal(chosen, indexer_reference.select_topk(q, w, keys, at, 4))
    with ops.force("cpu"), pytest.raises(ValueError, match="forced to the C\\+\\+ kernels, which cannot"):
        ops.select_topk(q.double(), w.double(), keys.double(), at, 4)


def test_without_a_compiler_torch_answers_and_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("package_directory", "cache_directory"):
        monkeypatch.setattr(native_room, name, lambda: tmp_path)
    monkeypatch.setattr(native_room.shutil, "which", lambda name: None)
    found = native_room.native.__wrapped__()
    assert found.library is None and "no C++ compiler found" in found.reason
    monkeypatch.setattr(operations, "native", lambda: found)
    row = next(row for row in ops.explain() if row["op"] == "sparse_mla")
    assert row["implementation"] == "torch" and "no C++ compiler found" in row["reason"]


def test_a_build_says_so_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*arguments: object, **settings: object) -> Path:
        assert "compiling the C++ kernels for base" in caplog.text
        raise OSError("enough")

    monkeypatch.setattr(native_room, "_compile", failing)
    with pytest.raises(OSError, match="enough"):
        build(tmp_path, LEVELS[-1])


def test_a_build_that_fails_leaves_nothing_and_names_the_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="failed"):
        build(tmp_path, Level(name="odd", needs=frozenset(), flags=("-mno-such-instructions",)))
    assert not list(tmp_path.iterdir())


def test_levels() -> None:
    assert best_level(frozenset()).name == "base"
    assert best_level(frozenset({"avx2", "fma"})).name == "avx2"
    everything = frozenset().union(*(level.needs for level in LEVELS))
    assert best_level(everything).name == "amx"
    assert len({library_name(level) for level in LEVELS}) == len(LEVELS)


@pytest.mark.slow
@pytest.mark.parametrize("level", RUNNABLE, ids=lambda level: level.name)
def test_every_level_agrees_with_the_reference(level: Level, libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = native_room._load(build(libraries, level), level)
    assert loaded.library is not None, loaded.reason
    for room in (indexer_cpu, mla_cpu):
        monkeypatch.setattr(room, "native", lambda: loaded)
    for seed in range(8):
        check_selection(seed, 21, 5, 24, 500, 40, ties=seed % 2 == 0)
        check_attention(seed, 5, 6, 40, 24, 200, 90)
    test_bfloat16_selects_the_mass_of_the_reference()
    q, pool, slots = torch.randn(3, 5, 24), torch.randn(60, 24), torch.randint(-1, 60, (3, 50))
    expected = mla_reference.sparse_mla_with_lse(q.bfloat16(), pool.bfloat16(), slots, 0.3, 16)[0]
    actual = mla_cpu.sparse_mla(q.bfloat16(), pool.bfloat16(), slots, 0.3, 16)
    torch.testing.assert_close(actual, expected, **TOL["sparse mla", "bfloat16"].bounds)


SANITIZED = """
    import sys, pathlib, torch
    from indexshare.ops import native as room
    from indexshare.ops.native import Level, _load
    from tests.unit.ops import test_native as tests
    level = Level(name="sanitized", needs=frozenset(), flags=())
    loaded = _load(pathlib.Path(sys.argv[1]), level)
    assert loaded.library is not None, loaded.reason
    tests.indexer_cpu.native = tests.mla_cpu.native = lambda: loaded
    for seed in range(6):
        tests.check_selection(seed, 19, 3, 7 + seed, 333, 40, ties=seed % 2 == 0)
        tests.check_attention(seed, 3, 5, 20 + seed, 11, 60, 50)
    for dtype in (torch.float32, torch.bfloat16):
        q, pool = torch.randn(3, 5, 22).to(dtype), torch.randn(60, 22).to(dtype)
        slots = torch.randint(-1, 60, (3, 50))
        out = tests.mla_cpu.sparse_mla(q, pool, slots, 0.3, 18)
        tests.mla_cpu.sparse_mla_backward(q, pool, slots, out, torch.randn_like(out), 0.3)
    print("clean")
"""


@pytest.mark.slow
def test_sanitizers_find_nothing(libraries: Path) -> None:
    """Address and undefined-behaviour checks, in a process of its own: the checker must be loaded first."""
    best = best_level()
    flags = (*best.flags, "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    try:
        library = build(libraries, Level(name="sanitized", needs=frozenset(), flags=flags))
    except OSError as error:
        pytest.skip(f"this compiler has no sanitizers: {error}")
    runtimes = [
        subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {"LD_PRELOAD": ":".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
    environment |= {"PYTHONPATH": ".", "HOME": str(libraries)}
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SANITIZED), str(library)],
        env=environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0 and "clean" in run.stdout, run.stderr[-3000:]
