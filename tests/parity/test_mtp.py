"""The draft layer against a naive float64 re-derivation, in its parallel form and drafting from a cache."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from indexshare import GlmMoeDsa, load_model, save_model
from indexshare.cache.paged import PagedCache
from indexshare.cache.view import InFlightView
from indexshare.checkpoint.tensor_files import SINGLE_FILE
from indexshare.config.layers import INDEX_KEYS
from indexshare.config.mla import LATENTS
from indexshare.model.draft.mtp import DraftState
from tests.parity.mtp_reference import NaiveDraftLayer
from tests.tolerance import TOL
from tests.unit.checkpoint.checkpoints import random_model, tiny_config

STEPS = 4
CASES: dict[str, dict[str, Any]] = {
    "selection far below the length": {"index_topk": 3},
    "irregular": {"index_topk": 7, "num_attention_heads": 3, "v_head_dim": 6, "index_n_heads": 5},
    "length within the selection": {"index_topk": 64},
    "groups": {"index_topk": 5, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    "unnormalised gates": {"index_topk": 4, "norm_topk_prob": False, "routed_scaling_factor": 1.0},
    "half-split indexer": {"index_topk": 4, "indexer_rope_interleave": False},
}
LENGTH = 23


@torch.no_grad()
def random_draft_model(folder: Path, changes: dict[str, Any]) -> tuple[GlmMoeDsa, NaiveDraftLayer]:
    """A model and the naive layer with the same weights, both from one file."""
    config = tiny_config(n_shared_experts=1, rms_norm_eps=1e-5, **changes)
    model = random_model(config, seed=3)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.mul_(1.2 * parameter.shape[-1] ** -0.5)
        elif name.endswith("norm.weight"):
            parameter.mul_(0.3).add_(1.0)
    save_model(model, folder)
    weights = {name: tensor.double().numpy() for name, tensor in load_file(folder / SINGLE_FILE).items()}
    naive = NaiveDraftLayer(config.to_dict(), weights)
    return load_model(folder, dtype="float64"), naive


def embeddings_of(model: GlmMoeDsa, tokens: torch.Tensor, offset: int, rows: int) -> torch.Tensor:
    return model.embed_tokens(tokens[offset : offset + rows])


@torch.no_grad()
def parallel(model: GlmMoeDsa, tokens: torch.Tensor, hidden: torch.Tensor) -> list[DraftState]:
    """All steps over all slots at once: every slot is its own anchor."""
    rows = len(hidden)
    view = InFlightView([rows])
    states = [model.mtp(embeddings_of(model, tokens, 1, rows), hidden, view)]
    for step in range(2, STEPS + 1):
        states.append(model.mtp.step(embeddings_of(model, tokens, step, rows), states[-1], view, step))
    return states


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["float64", "float32"])
def test_every_step_from_every_anchor(tmp_path: Path, name: str, kind: str) -> None:
    model, naive = random_draft_model(tmp_path, CASES[name])
    tokens = torch.randint(0, 256, (LENGTH + STEPS,))
    with torch.no_grad():
        hidden = model.trunk(tokens[:LENGTH], InFlightView([LENGTH]))
        expected = naive.run(model.embed_tokens(tokens).numpy(), hidden.numpy(), STEPS)
        model = model.to(getattr(torch, kind))
        states = parallel(model, tokens, hidden.to(getattr(torch, kind)))
        head = naive.weights["lm_head.weight"]
        tolerance = TOL["draft layer", kind].bounds
        for state, array in zip(states, expected, strict=True):
            assert np.abs(array).std() > 0.3
            torch.testing.assert_close(state.hidden.double(), torch.from_numpy(array), **tolerance)
            logits = model.lm_head(state.hidden).double()
            torch.testing.assert_close(logits, torch.from_numpy(array @ head.T), **tolerance)


@torch.no_grad()
def drafted(model: GlmMoeDsa, tokens: torch.Tensor, hidden: torch.Tensor, anchor: int) -> list[torch.Tensor]:
    """Draft from one anchor through a paged cache whose every slot after the anchor holds NaN."""
    cache = PagedCache(model.config, num_blocks=8, block_size=8, dtype=hidden.dtype, draft=True)
    table = [5, 0, 7, 2, 3]
    layer, rows = model.config.num_hidden_layers, anchor + 1
    for pool in (cache.pool(layer, LATENTS).stored, cache.pool(layer, INDEX_KEYS).stored):
        pool.fill_(float("nan"))
    first = model.mtp(embeddings_of(model, tokens, 1, rows), hidden[:rows], cache.view([table], [(0, rows)]))
    state = first.at(torch.tensor([anchor]))
    results = [state.hidden]
    view = cache.view([table], [(anchor, 1)])
    for step in range(2, STEPS + 1):
        before = cache.pool(layer, LATENTS).stored.clone(), cache.pool(layer, INDEX_KEYS).stored.clone()
        token = tokens[anchor + step : anchor + step + 1]
        state = model.mtp.step(model.embed_tokens(token), state, view, step)
        results.append(state.hidden)
        after = cache.pool(layer, LATENTS).stored, cache.pool(layer, INDEX_KEYS).stored
        # Later steps write nothing: the same bits, NaN included.
        assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(before, after, strict=True))
    return results


@pytest.mark.parametrize("name", ["selection far below the length", "length within the selection", "groups"])
def test_drafting_from_a_poisoned_cache_equals_the_parallel_form(tmp_path: Path, name: str) -> None:
    """Slots after the anchor, drafted ones included, are never read: whatever they hold changes nothing."""
    model, _ = random_draft_model(tmp_path, CASES[name])
    tokens = torch.randint(0, 256, (LENGTH + STEPS,))
    hidden = torch.randn(LENGTH, 32, dtype=torch.float64)
    whole = parallel(model, tokens, hidden)
    for anchor in (0, 1, 6, 15, LENGTH - 1):
        for state, row in zip(whole, drafted(model, tokens, hidden, anchor), strict=True):
            torch.testing.assert_close(row[0], state.hidden[anchor], **TOL["draft layer", "float64"].bounds)


def test_later_tokens_do_not_reach_earlier_anchors(tmp_path: Path) -> None:
    model, _ = random_draft_model(tmp_path, CASES["selection far below the length"])
    tokens = torch.randint(0, 256, (LENGTH + STEPS,))
    hidden = torch.randn(LENGTH, 32, dtype=torch.float64)
    changed = hidden.clone()
    changed[12:] = torch.randn(LENGTH - 12, 32, dtype=torch.float64)
    for one, other in zip(parallel(model, tokens, hidden), parallel(model, tokens, changed), strict=True):
        assert torch.equal(one.hidden[:12], other.hidden[:12])
        assert not torch.equal(one.hidden[12:], other.hidden[12:])


def test_two_sequences_in_one_batch_do_not_mix(tmp_path: Path) -> None:
    model, _ = random_draft_model(tmp_path, CASES["irregular"])
    lengths = [9, 14]
    hidden = torch.randn(sum(lengths), 32, dtype=torch.float64)
    embeddings = [torch.randn(sum(lengths), 32, dtype=torch.float64) for _ in range(STEPS)]

    @torch.no_grad()
    def run(rows: slice, sizes: list[int]) -> torch.Tensor:
        view = InFlightView(sizes)
        state = model.mtp(embeddings[0][rows], hidden[rows], view)
        for step in range(2, STEPS + 1):
            state = model.mtp.step(embeddings[step - 1][rows], state, view, step)
        return state.hidden

    together = run(slice(None), lengths)
    apart = torch.cat([run(slice(0, 9), [9]), run(slice(9, None), [14])])
    torch.testing.assert_close(together, apart, **TOL["draft layer", "float64"].bounds)
