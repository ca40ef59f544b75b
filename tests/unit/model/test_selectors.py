"""What chooses the tokens: the control ignores scores, a pass may bring its own selector, groups choose apart."""

import torch
from torch import Tensor

from indexshare.cache.paged import PagedCache
from indexshare.cache.view import InFlightView
from indexshare.config import preset
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selectors import content, recent
from indexshare.ops.indexer import reference
from tests.tolerance import TOL


def test_content_is_the_indexers_choice() -> None:
    q, weights, keys, positions = torch.randn(3, 2, 4), torch.randn(3, 2), torch.randn(50, 4), torch.tensor([49, 2, 4])
    assert torch.equal(content(q, weights, keys, positions, 5), reference.select_topk(q, weights, keys, positions, 5))


def test_the_recent_control_ignores_scores() -> None:
    q, weights, keys = torch.randn(3, 2, 4), torch.randn(3, 2), torch.randn(50, 4)
    chosen = recent(q, weights, keys, torch.tensor([49, 2, 4]), 5)
    assert chosen.tolist() == [[45, 46, 47, 48, 49], [0, 1, 2, -1, -1], [0, 1, 2, 3, 4]]


def fewer(q: Tensor, weights: Tensor, keys: Tensor, positions: Tensor, topk: int) -> Tensor:
    """Leaves the last two places empty."""
    return torch.nn.functional.pad(content(q, weights, keys, positions, topk - 2), (0, 2), value=-1)


@torch.no_grad()
def test_empty_places_stay_empty_wherever_a_sequence_lies() -> None:
    model = GlmMoeDsa(preset("tiny")).initialise(2).eval()
    ids = torch.randint(256, (30,))
    expected = model.trunk(ids, InFlightView([30]), selector=fewer)
    second = model.trunk(torch.cat((ids[:11], ids)), InFlightView([11, 30]), selector=fewer)[11:]
    tables = ([[3, 4, 5, 6]], [[6, 1, 0, 2]])
    paged = [model.trunk(ids, PagedCache(model.config, 7, 8).view(t, [(0, 30)]), selector=fewer) for t in tables]
    for got in (second, *paged):
        torch.testing.assert_close(got, expected, **TOL["logits between forms", "float32"].bounds)
