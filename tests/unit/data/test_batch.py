"""Batches: targets and their number, with and without a mask, and rows of different sources in one batch."""

import numpy as np
import pytest
import torch

from indexshare.data.batch import IGNORE, Batch, Window, stack


def test_targets_are_shifted_row_by_row() -> None:
    tokens = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])  # three inputs and one more token per row
    batch, x = Batch(tokens=tokens), IGNORE
    assert batch.targets(1).tolist() == [2, 3, 4, 6, 7, 8]
    assert batch.targets(2).tolist() == [3, 4, x, 7, 8, x]
    assert batch.targets(3).tolist() == [4, x, x, 8, x, x]
    assert batch.targets(4).tolist() == [x, x, x, x, x, x]


def test_masked_tokens_are_no_targets_but_stay_inputs() -> None:
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]])
    batch, x = Batch(tokens=torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), mask=mask), IGNORE
    assert batch.inputs.tolist() == [1, 2, 3, 5, 6, 7]
    assert batch.targets().tolist() == [x, 3, 4, 6, 7, x]
    assert batch.targets(2).tolist() == [3, 4, x, 7, x, x]
    assert batch.ahead(1).tolist() == [2, 3, 4, 6, 7, 8] and batch.ahead(2).tolist() == [3, 4, 0, 7, 8, 0]


@pytest.mark.parametrize("shift", [1, 2, 3, 4])
def test_counts_are_the_numbers_of_targets(shift: int) -> None:
    tokens, mask = torch.arange(1, 21).view(4, 5), torch.rand(4, 5) < 0.5
    for batch in (Batch(tokens=tokens), Batch(tokens=tokens, mask=mask)):
        number = int((batch.targets(shift) != IGNORE).sum())
        assert batch.count(shift) == max(1, number)
        assert sum(int((part.targets(shift) != IGNORE).sum()) for part in batch.split(3)) == number
    assert Batch(tokens=tokens, mask=torch.zeros(4, 5, dtype=torch.bool)).count() == 1, "nothing is divided by zero"


def test_parts_keep_everything_of_their_rows() -> None:
    batch = Batch(
        tokens=torch.arange(12).view(3, 4),
        mask=torch.arange(12).view(3, 4) % 2 == 0,
        positions=torch.arange(9).view(3, 3),
        extra={"advantage": torch.arange(12.0).view(3, 4)},
    )
    first, second = batch.split(2)
    assert (first.rows, second.rows, first.length) == (2, 1, 3)
    for name in ("tokens", "mask", "positions"):
        assert torch.equal(torch.cat((getattr(first, name), getattr(second, name))), getattr(batch, name))
    assert torch.equal(second.extra["advantage"], batch.extra["advantage"][2:])
    assert batch.to("meta").extra["advantage"].is_meta


def test_rows_of_different_kinds_stand_in_one_batch() -> None:
    plain = np.arange(4)
    masked = Window(tokens=np.arange(4, 8), mask=np.array([False, True, False, True]))
    scored = Window(tokens=np.arange(8, 12), extra={"advantage": np.full(4, 0.5, dtype=np.float32)})
    batch = stack([plain, masked, scored])
    assert batch.tokens.dtype == torch.int64 and batch.tokens.tolist() == np.arange(12).reshape(3, 4).tolist()
    assert batch.mask is not None and batch.mask.tolist() == [[True] * 4, [False, True, False, True], [True] * 4]
    assert batch.extra["advantage"].tolist() == [[0.0] * 4, [0.0] * 4, [0.5] * 4]
    assert stack([plain, plain]).mask is None and not stack([plain]).extra
