"""The C++ kernels over rows of few bits in place: bit for bit as over decoded rows, but for whole-number scores."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from indexshare import ops
from indexshare.ops import native as native_room
from indexshare.ops.coded import cpu_impl as coded_cpu
from indexshare.ops.coded import reference, torch_impl
from indexshare.ops.coded.decoding import decode_rows
from indexshare.ops.coded.layout import BF16, FP8, GROUP, INT8, RowLayout
from indexshare.ops.coded.rows import CodedRows
from indexshare.ops.indexer import cpu_impl as indexer_cpu
from indexshare.ops.indexer import reference as indexer_reference
from indexshare.ops.native import LEVELS, Level, build, native, processor_features
from indexshare.ops.sparse_mla import cpu_impl as mla_cpu
from indexshare.ops.sparse_mla import reference as mla_reference
from tests.tolerance import TOL
from tests.unit.ops.test_coded import SIZES, hard_rows

pytestmark = pytest.mark.skipif(native().library is None, reason=native().reason)
RUNNABLE = [level for level in LEVELS if level.needs <= processor_features()]
FORMS = [(kind, torch.float32) for kind in (BF16, FP8, INT8)] + [(kind, torch.bfloat16) for kind in (FP8, INT8)]


def coded(kind: str, rows: Tensor, precise: int = 0) -> CodedRows:
    """Rows at an odd address, with room between them that must not be read."""
    width = rows.shape[1]
    form = RowLayout(kind=kind, width=width, precise=width if kind == BF16 else precise)
    storage = torch.full((len(rows), form.num_bytes + 4), 255, dtype=torch.uint8)
    storage[:, 1 : form.num_bytes + 1] = torch_impl.encode_rows(rows, form)
    return CodedRows(storage[:, 1 : form.num_bytes + 1], form, rows.dtype)


def check_encoding(kind: str, width: int, precise: int) -> None:
    form = RowLayout(kind=kind, width=width, precise=width if kind == BF16 else precise)
    for rows in (hard_rows(width), hard_rows(width).bfloat16(), hard_rows(width + 3)[:, 2 : width + 2]):
        assert torch.equal(coded_cpu.encode_rows(rows, form), torch_impl.encode_rows(rows, form))
    bad = torch.randn(4, width)
    for row, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        bad[row, width // 2] = value
    got, wanted = (room.encode_rows(bad, form) for room in (coded_cpu, torch_impl))
    decoded = [decode_rows(each, form, torch.float32) for each in (got, wanted)]
    torch.testing.assert_close(*decoded, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", [BF16, FP8, INT8])
@pytest.mark.parametrize(("width", "precise"), SIZES)
def test_rows_are_encoded_as_by_torch_and_the_reference(kind: str, width: int, precise: int) -> None:
    check_encoding(kind, width, precise)


def test_many_rows_are_encoded_by_several_threads() -> None:
    form, rows = RowLayout(kind=INT8, width=160, precise=32), torch.randn(1000, 160)
    assert torch.equal(ops.encode_rows(rows, form), torch_impl.encode_rows(rows, form))
    assert ops.encode_rows(rows[:0], form).shape == (0, form.num_bytes)
    with pytest.raises(ValueError, match=r"rows \[1000, 159\]; expected \[n, 160\]"):
        coded_cpu.encode_rows(rows[:, 1:], form)


def check_attention(
    kind: str, dtype: torch.dtype, *, queries: int, heads: int, width: int, values: int, rows: int, k: int
) -> None:
    q, pool = torch.randn(queries, heads, width).to(dtype), torch.randn(rows, width).to(dtype)
    slots = torch.randint(-1, rows, (queries, k))
    unused = torch.ones(rows, dtype=torch.bool)
    unused[slots[slots >= 0]] = False
    pool[unused] = torch.nan
    stored = coded(kind, pool, width - values)
    actual, lse = mla_cpu.sparse_mla_with_lse(q, stored, slots, width**-0.5, values, want_lse=True)
    expected, expected_lse = mla_cpu.sparse_mla_with_lse(q, stored[:], slots, width**-0.5, values, want_lse=True)
    assert torch.equal(actual, expected) and lse is not None and expected_lse is not None
    assert torch.equal(lse, expected_lse)
    bounds = TOL["sparse mla", str(dtype)[6:]].bounds
    torch.testing.assert_close(actual, mla_reference.sparse_mla(q, stored, slots, width**-0.5, values), **bounds)


ATTENTION = [
    {"queries": 1, "heads": 1, "width": 2, "values": 2, "rows": 1, "k": 1},
    {"queries": 3, "heads": 4, "width": 96, "values": 64, "rows": 700, "k": 256},
    {"queries": 2, "heads": 9, "width": 160, "values": 128, "rows": 90, "k": 70},
    {"queries": 2, "heads": 16, "width": 576, "values": 512, "rows": 300, "k": 129},
    {"queries": 4, "heads": 3, "width": 302, "values": 270, "rows": 50, "k": 65},
]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("kind", "dtype"), FORMS)
@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention(kind: str, dtype: torch.dtype, case: dict[str, int]) -> None:
    check_attention(kind, dtype, **case)


@pytest.mark.parametrize(("kind", "dtype"), FORMS)
def test_attention_without_rows_or_queries(kind: str, dtype: torch.dtype) -> None:
    q, pool = torch.randn(3, 5, 24).to(dtype), coded(kind, torch.randn(9, 24).to(dtype), 8)
    out = mla_cpu.sparse_mla(q, pool, torch.tensor([[-1, -1], [3, -1], [-1, -1]]), 0.3, 16)
    assert not out[0].any() and not out[2].any() and out[1].any()
    assert mla_cpu.sparse_mla(q[:0], pool, torch.empty(0, 2, dtype=torch.int64), 0.3, 16).shape == (0, 5, 16)
    with pytest.raises(IndexError, match="a slot is not a row of the pool, which has 9"):
        mla_cpu.sparse_mla(q, pool, torch.full((3, 4), 9), 0.3, 16)


def check_selection(
    kind: str, dtype: torch.dtype, *, queries: int, heads: int, width: int, keys: int, topk: int, ties: bool
) -> None:
    shapes = ((queries, heads, width), (queries, heads), (keys, width))
    if ties:
        q, w, k = (torch.randint(-2, 3, s).float() for s in shapes)
        k[:, ::128] = 127  # one scale for all: sums of small whole numbers are exact
    else:
        q, w, k = (torch.randn(s) for s in shapes)
    q, k = q.to(dtype), k.to(dtype)
    stored, positions = coded(kind, k), torch.randint(keys, (queries,))
    actual = indexer_cpu.select_topk(q, w, stored, positions, topk)
    if kind == INT8 and width <= GROUP:  # products of whole numbers: what is read is not rounded to bfloat16
        stored = CodedRows(stored.stored, stored.layout, torch.float32)
    elif not ties:
        assert torch.equal(actual, indexer_cpu.select_topk(q, w, stored[:], positions, topk))
    expected = indexer_reference.select_topk(q, w, stored, positions, topk)
    if ties:
        assert torch.equal(actual, expected)
        return
    scores = indexer_reference.index_scores(q, w, stored[:])
    mass = [scores.gather(1, c.clamp_min(0)).masked_fill(c < 0, 0).sort(1).values for c in (actual, expected)]
    torch.testing.assert_close(*mass, **TOL["selected score mass", "float32"].bounds)


SELECTION = [
    {"queries": 1, "heads": 1, "width": 2, "keys": 1, "topk": 1},
    {"queries": 1, "heads": 8, "width": 64, "keys": 9000, "topk": 512},
    {"queries": 40, "heads": 5, "width": 128, "keys": 700, "topk": 64},
    {"queries": 17, "heads": 3, "width": 150, "keys": 333, "topk": 40},
]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("kind", "dtype"), FORMS)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("case", SELECTION, ids=str)
def test_selection(kind: str, dtype: torch.dtype, ties: bool, case: dict[str, int]) -> None:
    check_selection(kind, dtype, ties=ties, **case)


@pytest.mark.parametrize("kind", [FP8, INT8])
def test_a_key_that_is_not_a_number_is_the_largest_as_in_torch(kind: str) -> None:
    q, w, keys = torch.randn(6, 3, 8), torch.randn(6, 3), torch.randn(400, 8)
    keys[[7, 50]] = torch.tensor([torch.inf, torch.nan])[:, None]
    stored, positions = coded(kind, keys), torch.arange(6) * 60 + 99
    expected = indexer_reference.select_topk(q, w, stored, positions, 32)
    assert torch.equal(indexer_cpu.select_topk(q, w, stored, positions, 32), expected)
    assert bool((expected == 7).any(1).all())


def test_what_the_kernels_do_not_know_is_refused_with_the_reason() -> None:
    q, w, at = torch.randn(2, 3, 8), torch.randn(2, 3), torch.tensor([7, 8])
    stored = coded(INT8, torch.randn(9, 8))
    assert indexer_cpu.unsupported(q, w, stored, at, 4) is None
    assert "torch.bfloat16" in str(indexer_cpu.unsupported(q.bfloat16(), w, stored, at, 4))
    assert mla_cpu.unsupported(q, stored, at[:, None], 0.3, 4) is None
    assert mla_cpu.unsupported(q.requires_grad_(), stored, at[:, None], 0.3, 4) == "gradients over rows in int8"
    assert "float64" in str(coded_cpu.unsupported(torch.randn(2, 8).double(), stored.layout))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("kind", "dtype"), FORMS)
def test_any_number_of_threads_and_any_batch_give_the_same_bits(kind: str, dtype: torch.dtype) -> None:
    q, w, keys = torch.randn(40, 4, 32).to(dtype), torch.randn(40, 4), coded(kind, torch.randn(700, 32).to(dtype))
    positions = torch.arange(660, 700)
    heads, pool = torch.randn(40, 4, 24).to(dtype), coded(kind, torch.randn(700, 24).to(dtype), 8)

    def everything(rows: slice) -> list[Tensor]:
        slots = indexer_cpu.select_topk(q[rows], w[rows], keys, positions[rows], 64)
        return [slots, mla_cpu.sparse_mla(heads[rows], pool, slots, 0.3, 16)]

    torch.set_num_threads(1)
    expected = everything(slice(None))
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        assert all(torch.equal(a, b) for a, b in zip(everything(slice(None)), expected, strict=True))
    for row in (0, 17, 39):
        found = everything(slice(row, row + 1))
        assert all(torch.equal(a[0], b[row]) for a, b in zip(found, expected, strict=True))


def check_everything() -> None:
    """All kernels, for other builds of them."""
    torch.manual_seed(0)
    for width, precise in SIZES:
        for kind in (BF16, FP8, INT8):
            check_encoding(kind, width, precise)
    for kind, dtype in FORMS:
        for case in ATTENTION:
            check_attention(kind, dtype, **case)
        for case in SELECTION:
            for ties in (False, True):
                check_selection(kind, dtype, ties=ties, **case)


@pytest.mark.slow
@pytest.mark.parametrize("level", RUNNABLE, ids=lambda level: level.name)
def test_every_level_agrees(level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = native_room._load(build(tmp_path, level), level)
    assert loaded.library is not None, loaded.reason
    for room in (indexer_cpu, mla_cpu, coded_cpu):
        monkeypatch.setattr(room, "native", lambda: loaded)
    check_everything()


def test_references_of_both_operations_read_coded_rows() -> None:
    stored = coded(FP8, torch.randn(30, 20), 4)
    everything = reference.decode_rows(stored.stored, stored.layout)
    q, slots = torch.randn(2, 3, 20), torch.randint(30, (2, 5))
    assert torch.equal(
        mla_reference.sparse_mla(q, stored, slots, 0.3, 16), mla_reference.sparse_mla(q, everything, slots, 0.3, 16)
    )
    w, at = torch.randn(2, 3), torch.tensor([20, 29])
    assert torch.equal(
        indexer_reference.select_topk(q, w, stored, at, 4), indexer_reference.select_topk(q, w, everything, at, 4)
    )
