"""From how many rows on a row's bits are its own: found by trying, and said where there is no such number."""

import pytest
import torch
from torch import Tensor

from indexshare.config import preset
from indexshare.engine import row_products
from indexshare.engine.llm import LLM
from indexshare.model.glm import GlmMoeDsa


@pytest.fixture(autouse=True)
def _tried_anew() -> None:
    row_products._fewest.cache_clear()


def depending(monkeypatch: pytest.MonkeyPatch, fewest: int) -> None:
    """A library whose products of fewer rows have other bits."""

    def other(rows: Tensor, matrix: Tensor) -> Tensor:
        return rows[:, :1] + (len(rows) < fewest)

    monkeypatch.setattr(torch.nn.functional, "linear", other)


@pytest.mark.parametrize(
    ("fewest", "expected"), [(1, 16), (16, 16), (17, 32), (60, 64), (128, 128), (129, None), (600, None)]
)
def test_it_is_found_by_trying(monkeypatch: pytest.MonkeyPatch, fewest: int, expected: int | None) -> None:
    depending(monkeypatch, fewest)
    assert row_products.fewest_rows(torch.zeros(3, 40)) == expected


def test_where_rows_are_never_independent_only_whole_chunks_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexshare.engine.core.fewest_rows", lambda weight: None)
    model = GlmMoeDsa(preset("tiny")).initialise(1).eval()
    llm = LLM(model, cache_tokens=1024, prefill_chunk=128)
    prompt = [n % 250 for n in range(300)]
    cold = LLM(model, cache_tokens=1024, prefill_chunk=128, prefix_cache=False).generate(prompt)[0]
    assert cold.stats.cached_tokens == 0
    assert [llm.generate(prompt[:n])[0].stats.cached_tokens for n in (300, 300, 257, 256, 129)] == [
        0,
        256,
        256,
        128,
        128,
    ]
