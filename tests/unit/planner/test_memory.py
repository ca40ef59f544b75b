"""Counts from shapes against published figures and against what is really allocated."""

import pytest
import torch

from indexshare.config import preset
from indexshare.config.layers import INDEX_KEYS
from indexshare.config.mla import LATENTS
from indexshare.model.glm import GlmMoeDsa
from indexshare.planner.memory import cache_bytes, count_parameters


def test_glm_52_counts_as_published() -> None:
    count = count_parameters(preset("glm-5.2"))
    assert count.total == 753_329_921_024
    assert round(count.active / 1e9, 2) == 40.30
    assert round(count.draft / 1e9, 2) == 9.95


@pytest.mark.parametrize("name", ["tiny", "nano", "glm-5.2", "deepseek-v3.2"])
def test_counts_equal_the_module(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        model = GlmMoeDsa(config)
    count = count_parameters(config)
    assert sum(p.numel() for p in model.parameters()) == count.total
    assert model.mtp is not None
    assert sum(p.numel() for p in model.mtp.parameters()) == count.draft


def test_cache_bytes_of_glm_52() -> None:
    per_token = cache_bytes(preset("glm-5.2"), 2)
    assert per_token.streams[LATENTS] == 78 * 576 * 2
    assert per_token.streams[INDEX_KEYS] == 21 * 128 * 2
    assert cache_bytes(preset("glm-5.2"), 2, draft=True).total == 79 * 1152 + 22 * 256
