"""Codecs of cache rows: torch against the reference bit for bit, the reference against its bound, edges by name."""

import math
import struct

import pytest
import torch
from torch import Tensor

from indexshare.ops.coded import reference, torch_impl
from indexshare.ops.coded.decoding import decode_rows
from indexshare.ops.coded.layout import BF16, FP8, GROUP, INT8, RowLayout
from indexshare.ops.coded.rows import CodedRows

KINDS = (FP8, INT8)
SIZES = [(576, 64), (128, 0), (64, 0), (96, 32), (129, 0), (301, 7), (1, 0), (5, 5)]
LARGEST = torch.finfo(torch.float32).max


def layout(kind: str, width: int, precise: int = 0) -> RowLayout:
    return RowLayout(kind=kind, width=width, precise=width if kind == BF16 else precise)


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(0.25), b.nan_to_num(0.25))


def hard_rows(width: int) -> Tensor:
    """Random rows of many sizes, ties, zeros, signs of zero, subnormal numbers, the largest and the smallest."""
    rows = torch.randn(14, width) * torch.logspace(-42, 36, 14)[:, None]
    ties = torch.arange(width) % 254 / 2 - 63.5  # halves of a scale of 1: every other value is a tie
    rows = torch.cat((rows, ties[None], torch.zeros(1, width), -torch.zeros(1, width)))
    rows[14, 0] = 127.0
    spread = torch.randn(width) * 2.0 ** -(torch.arange(width) % 24)  # fp8: down to its evenly spaced numbers
    rest = torch.stack((spread, torch.full((width,), LARGEST), torch.full((width,), 2.0**-149), spread / 2.0**120))
    return torch.cat((rows, rest))


@pytest.mark.parametrize("kind", [*KINDS, BF16])
@pytest.mark.parametrize(("width", "precise"), SIZES)
def test_torch_is_the_reference_bit_for_bit(kind: str, width: int, precise: int) -> None:
    form, rows = layout(kind, width, precise), hard_rows(width)
    stored = reference.encode_rows(rows, form)
    assert torch.equal(torch_impl.encode_rows(rows, form), stored)
    assert same(decode_rows(stored, form, torch.float32), reference.decode_rows(stored, form))
    for dtype in (torch.bfloat16, torch.float64):
        assert same(decode_rows(stored, form, dtype), reference.decode_rows(stored, form).to(dtype))
    narrow = rows.bfloat16()
    assert torch.equal(torch_impl.encode_rows(narrow, form), reference.encode_rows(narrow, form))


@pytest.mark.parametrize("kind", [*KINDS, BF16])
@pytest.mark.parametrize(("width", "precise"), SIZES)
def test_the_stated_bound_holds(kind: str, width: int, precise: int) -> None:
    form, rows = layout(kind, width, precise), hard_rows(width)
    ordinary = rows.abs().amax(-1) < 1e38  # what bfloat16 rounds to an infinity has no bound
    rows = rows[ordinary]
    error = (reference.decode_rows(reference.encode_rows(rows, form), form).double() - rows.double()).abs()
    smallest = 2.0**-134  # half of bfloat16's smallest number
    assert (error <= reference.error_bound(rows, form) + smallest).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_what_it_says_for_ordinary_rows(kind: str) -> None:
    rows = torch.randn(50, 128)
    error = (reference.decode_rows(reference.encode_rows(rows, layout(kind, 128)), layout(kind, 128)) - rows).abs()
    if kind == INT8:
        assert (error <= 0.004 * rows.abs().amax(-1, keepdim=True)).all()
    else:
        assert (error <= torch.maximum(rows.abs() / 16, rows.abs().amax(-1, keepdim=True) * 2.0**-17)).all()
    assert error.max() > 0


def test_the_table_of_fp8_is_that_of_torch() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    assert same(torch.tensor([reference.fp8_value(int(c)) for c in codes]), codes.view(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_glm_have_the_published_sizes(kind: str) -> None:
    latents, keys = layout(kind, 576, 64), layout(kind, 128)
    assert (latents.num_bytes, latents.packed, latents.groups, latents.precise_at) == (656, 512, 4, 528)
    assert (keys.num_bytes, keys.groups) == (132, 1)
    assert layout(BF16, 576).num_bytes == 1152


def test_bytes_are_pinned() -> None:
    row = torch.tensor([[127.0, -63.5, 0.25, 2.5, -1.0, 1.5]])
    int8 = bytes([127, 192, 0, 2]) + struct.pack("<f", 1.0) + struct.pack("<2H", 0xBF80, 0x3FC0)
    assert bytes(torch_impl.encode_rows(row, layout(INT8, 6, 2))[0].tolist()) == int8  # ties to even: -63.5, 2.5
    row[0, :4] = torch.tensor([448.0, -9.5, 2.0**-10, 3 * 2.0**-10])
    fp8 = bytes([0x7E, 0x80 | 0x52, 0x00, 0x02]) + struct.pack("<f", 1.0) + struct.pack("<2H", 0xBF80, 0x3FC0)
    assert bytes(torch_impl.encode_rows(row, layout(FP8, 6, 2))[0].tolist()) == fp8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_a_number_shows_in_its_whole_group_and_nowhere_else(kind: str, bad: float) -> None:
    form, rows = layout(kind, 300, 20), torch.randn(3, 300)
    rows[1, 130] = bad
    for room in (reference, torch_impl):
        stored = room.encode_rows(rows, form)
        found = reference.decode_rows(stored, form)
        assert found[1, GROUP : 2 * GROUP].isnan().all()
        found[1, GROUP : 2 * GROUP] = 0
        assert found.isfinite().all()
    rows[1, 130], rows[2, 299] = 0.0, bad
    found = decode_rows(torch_impl.encode_rows(rows, form), form, torch.float32)
    assert found[:, :299].isfinite().all(), "precise values stand for themselves"
    assert same(found[2, 299], torch.tensor(bad))


@pytest.mark.parametrize("kind", KINDS)
def test_large_numbers_do_not_saturate(kind: str) -> None:
    form = layout(kind, 4)
    found = decode_rows(torch_impl.encode_rows(torch.tensor([[3e38, -3e38, 0.0, 1.0]]), form), form, torch.float32)
    assert found.isfinite().all()
    torch.testing.assert_close(found[0, :2], torch.tensor([3e38, -3e38]), rtol=1 / 16, atol=0.0)
    assert found[0, 2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", [*KINDS, BF16])
def test_a_row_depends_on_nothing_beside_it(kind: str) -> None:
    form, rows = layout(kind, 192, 64), torch.randn(9, 192)
    whole = torch_impl.encode_rows(rows, form)
    assert torch.equal(torch.cat([torch_impl.encode_rows(part, form) for part in rows.split((1, 5, 3))]), whole)
    assert torch.equal(torch_impl.encode_rows(rows.t().contiguous().t(), form), whole), "wherever its values lie"
    assert (
        torch_impl.encode_rows(rows[:0], form).shape
        == (0, form.num_bytes)
        == reference.encode_rows(rows[:0], form).shape
    )
    assert decode_rows(whole[:0], form, torch.bfloat16).shape == (0, 192)
    assert torch.equal(decode_rows(whole[3], form, torch.float32), reference.decode_rows(whole[3:4], form)[0])


@pytest.mark.parametrize("kind", [*KINDS, BF16])
def test_coded_rows_decode_what_is_asked_for(kind: str) -> None:
    form = layout(kind, 69, 5)  # scales at no multiple of 4
    stored = torch_impl.encode_rows(torch.randn(20, 69), form)
    wide = torch.cat((stored, torch.full((20, 3), 255, dtype=torch.uint8)), dim=1)
    rows = CodedRows(wide[:, : form.num_bytes], form, torch.float32)
    everything = reference.decode_rows(stored, form)
    assert rows.shape == (20, 69) and len(rows) == 20 and rows.is_cpu
    which = torch.tensor([[3, 3], [19, 0]])
    assert same(rows[which], everything[which])
    assert same(rows[4:9], everything[4:9]) and same(rows[:], everything)


def test_layouts_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="the kind of a row is 'int4'; expected one of bfloat16, fp8, int8"):
        RowLayout(kind="int4", width=8)
    with pytest.raises(ValueError, match="9 precise values of 8 in a int8 row"):
        RowLayout(kind=INT8, width=8, precise=9)
