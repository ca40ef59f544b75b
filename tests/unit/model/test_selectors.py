"""What chooses the tokens: the control ignores scores, a pass may bring its own selector, groups choose apart."""

import torch

from indexshare.model.selectors import content, recent
from indexshare.ops.indexer import reference


def test_content_is_the_indexers_choice() -> None:
    q, weights, keys, positions = torch.randn(3, 2, 4), torch.randn(3, 2), torch.randn(50, 4), torch.tensor([49, 2, 4])
    assert torch.equal(content(q, weights, keys, positions, 5), reference.select_topk(q, weights, keys, positions, 5))


def test_the_recent_control_ignores_scores() -> None:
    q, weights, keys = torch.randn(3, 2, 4), torch.randn(3, 2), torch.randn(50, 4)
    chosen = recent(q, weights, keys, torch.tensor([49, 2, 4]), 5)
    assert chosen.tolist() == [[45, 46, 47, 48, 49], [0, 1, 2, -1, -1], [0, 1, 2, 3, 4]]
