"""Dense models with indexers: what changes and what does not, training of indexers alone, saving, and the way back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from indexshare import LLM, SamplingParams, SharePlan, load_model, save_model
from indexshare.cache.view import InFlightView
from indexshare.checkpoint.surgery import add_indexers, remove_indexers
from indexshare.config import ModelConfig
from indexshare.config.retrofitted import base_config
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import AttentionRecord, Observer
from indexshare.model.selection import FULL_ATTENTION
from indexshare.train.objectives.indexer import Indexer
from tests.tolerance import TOL

SIZES: dict[str, Any] = {
    "model_type": "qwen3", "vocab_size": 200, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "rope_theta": 1e4, "bos_token_id": 0, "eos_token_id": 0, "dtype": "float32",
}  # fmt: skip
PLAN = SharePlan.from_pattern("FSFS")
IDS = torch.randint(200, (60,), generator=torch.Generator().manual_seed(1))


def base(**changes: Any) -> GlmMoeDsa:
    return GlmMoeDsa(ModelConfig.from_dict(SIZES | {"initializer_range": 0.2} | changes)).initialise(2).eval()


def grown(model: GlmMoeDsa, topk: int = 16) -> GlmMoeDsa:
    return add_indexers(model, PLAN, heads=4, width=16, topk=topk)


@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_short_texts_are_the_bases_own(tied: bool) -> None:
    model = base(tie_word_embeddings=tied)
    own = grown(model)
    assert torch.equal(own(IDS[None, :16]), model(IDS[None, :16]))
    assert torch.equal(own(IDS[None], full_attention_below=FULL_ATTENTION), model(IDS[None]))
    assert not torch.allclose(own(IDS[None])[:, 16:], model(IDS[None])[:, 16:], atol=1e-3)
    shared = {name for name, tensor in own.named_parameters() if "indexer" not in name}
    assert all(own.get_parameter(name) is model.get_parameter(name) for name in shared)
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    texts = [LLM(m, cache_tokens=128).generate(IDS[:10].tolist(), params)[0].token_ids for m in (model, own)]
    assert texts[0] == texts[1]


def test_saved_and_loaded_and_taken_back(tmp_path: Path) -> None:
    model = base(tie_word_embeddings=True)
    own = grown(model)
    save_model(model, tmp_path / "base")
    save_model(own, tmp_path / "own")
    written = json.loads((tmp_path / "own" / "config.json").read_text())
    assert written["model_type"] == "indexshare" and written["base"]["model_type"] == "qwen3"
    loaded = load_model(tmp_path / "own")
    assert loaded.config == own.config and loaded.config.share_plan == PLAN
    with torch.no_grad():
        assert torch.equal(loaded(IDS[None]), own(IDS[None]))
    back = remove_indexers(loaded)
    assert base_config(loaded.config) == model.config == back.config
    save_model(back, tmp_path / "back")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "base" / name).read_bytes(), name


class Recorder(Observer):
    wants_attention = True

    def __init__(self) -> None:
        self.records: list[AttentionRecord] = []

    def attention(self, record: AttentionRecord) -> None:
        self.records.append(record)


@torch.no_grad()
def test_what_an_observer_sees_is_the_attention() -> None:
    model, seen = grown(base()), Recorder()
    model.trunk(IDS, InFlightView([60]), observer=seen)
    assert [record.index is not None for record in seen.records] == [True, False, True, False]
    record, mixer = seen.records[1], model.layers[1].self_attn
    logits = torch.einsum("nar,tr->nat", record.queries, record.latents)
    keys = record.latents.unflatten(1, (2, 8)).repeat_interleave(2, dim=1)
    queries = record.queries.unflatten(2, (2, 8)).sum(2)
    torch.testing.assert_close(
        logits, torch.einsum("nad,tad->nat", queries, keys), **TOL["logits between forms", "float32"].bounds
    )
    assert record.scale == mixer.scale == 8**-0.5


def test_indexers_learn_the_attention_of_the_layers_they_serve() -> None:
    """With the trunk frozen the loss falls, and nothing but the indexers has moved."""
    model = grown(base()).train()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    indexers = [p for name, p in model.named_parameters() if "indexer" in name]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("indexer" in name)
    optimizer, losses = torch.optim.AdamW(indexers, lr=3e-3), []
    for _ in range(30):
        observer = Indexer(keys="all").observer(model)
        model.trunk(IDS, InFlightView([60]), full_attention_below=FULL_ATTENTION, observer=observer)
        assert observer.loss is not None
        losses.append(observer.loss.item() / observer.rows)
        optimizer.zero_grad()
        observer.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} <= {
        n for n, _ in model.named_parameters() if "indexer" in n
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": {"model_type": "glm_moe_dsa"}}, "base is 'glm_moe_dsa'; expected the configuration of a llama"),
        ({"base": None}, "base is None"),
        ({"indexer_types": None}, "indexer_types is missing"),
        ({"indexer_types": ["full"]}, "describes 1 layers, but num_hidden_layers is 4"),
        ({"index_topk": 0}, "index_topk is 0; expected a positive integer"),
        ({"index_head_dim": 4}, "must hold 8 rotary values"),
        ({"index_topkk": 4}, "did you mean 'index_topk'"),
    ],
)
def test_damaged_configurations(changes: dict[str, Any], message: str) -> None:
    data = grown(base()).config.to_dict()
    with pytest.raises(ValueError, match=message):
        ModelConfig.from_dict(data | changes)


def test_what_cannot_be_given_indexers() -> None:
    model = base()
    with pytest.raises(ValueError, match="selects already"):
        grown(grown(model))
    with pytest.raises(ValueError, match="the plan has 2 layers, the model 4"):
        add_indexers(model, SharePlan.from_pattern("FS"), heads=2, width=8, topk=8)
    with pytest.raises(ValueError, match="must hold 8 rotary values"):
        add_indexers(model, PLAN, heads=2, width=4, topk=8)
