"""The memory rules of the model: nothing of size queries x keys, and no expansion of the latent cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from indexshare.cache.paged import PagedCache
from indexshare.cache.view import InFlightView
from indexshare.config import preset
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selection import FULL_ATTENTION
from indexshare.ops.dense_attention import causal
from indexshare.ops.dense_attention import torch_impl as dense_torch
from indexshare.ops.indexer import torch_impl as indexer_torch
from indexshare.ops.sparse_mla import torch_impl as mla_torch

LENGTHS = (512, 1024, 2048)


class LargestStorage(TorchDispatchMode):
    """Bytes of the largest tensor that any operation inside returned."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.nbytes = max(self.nbytes, value.untyped_storage().nbytes())
        return result


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> GlmMoeDsa:
    """`tiny`, selecting 8 tokens, with byte budgets that short sequences exceed."""
    for module in (indexer_torch, dense_torch, mla_torch):
        monkeypatch.setattr(module, "CHUNK_BYTES", 1 << 14)
    monkeypatch.setattr(causal, "BLOCK", 8)
    monkeypatch.setattr(causal, "KEEP_BYTES", 1 << 14)
    return GlmMoeDsa(preset("tiny")).initialise(0).eval()


@contextmanager
def expanded_rows(model: GlmMoeDsa) -> Iterator[list[int]]:
    """Collects how many latents each call expands into keys and values."""
    rows: list[int] = []
    handles = [
        layer.self_attn.kv_b_proj.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
        for layer in model.layers
    ]
    yield rows
    for handle in handles:
        handle.remove()


def run(model: GlmMoeDsa, length: int, way: str) -> None:
    ids = torch.randint(0, model.config.vocab_size, (length,))
    if way == "training":
        model.trunk(ids, InFlightView([length])).sum().backward()
        return
    with torch.no_grad():
        if way == "paged":
            cache, table = PagedCache(model.config, length // 64, 64), list(range(length // 64))
            for past in range(0, length, 128):
                model.trunk(ids[past : past + 128], cache.view([table], [(past, 128)]))
        else:
            below = FULL_ATTENTION if way == "full attention" else 0
            model.trunk(ids, InFlightView([length]), full_attention_below=below)


@pytest.mark.parametrize("way", ["in flight", "paged", "training", "full attention"])
def test_the_largest_tensor_grows_with_the_context_not_its_square(model: GlmMoeDsa, way: str) -> None:
    sizes = []
    for length in LENGTHS:
        with LargestStorage() as largest:
            run(model, length, way)
        sizes.append(largest.nbytes)
    assert sizes[1] <= 2.2 * sizes[0] and sizes[2] <= 2.2 * sizes[1]
    assert sizes[2] < LENGTHS[2] ** 2 / 4  # a byte for every fourth (query, key) pair would be more


@pytest.mark.parametrize("way", ["in flight", "paged", "training"])
def test_latents_are_expanded_within_the_short_dense_path_only(model: GlmMoeDsa, way: str) -> None:
    with expanded_rows(model) as rows:
        run(model, LENGTHS[0], way)
    assert 0 < max(rows) <= model.config.index_topk
