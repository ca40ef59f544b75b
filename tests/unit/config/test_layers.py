"""The table of layers: a made-up attention is one class and one registration, and everything that is sized follows."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from indexshare.cache.paged import PagedCache
from indexshare.checkpoint.names import checkpoint_tensors
from indexshare.config import ModelConfig, layers, preset, variant
from indexshare.config.layers import (
    INDEX_KEYS,
    AttentionTable,
    LayerTensor,
    Role,
    Stream,
    layer_streams,
    model_tensors,
    register_attention,
)
from indexshare.config.variant import Kind, Variant
from indexshare.model.glm import GlmMoeDsa
from indexshare.planner.flops import attention_flops, cache_row_bytes, token_flops
from indexshare.planner.memory import cache_bytes, cache_bytes_per_token, count_parameters, plan_memory


@dataclass(frozen=True)
class Grouped(Kind):
    """Made up: keys and values in groups of heads."""

    kind: ClassVar[str] = "grouped"

    groups: int
    width: int


class GroupedTable(AttentionTable):
    """Its rows."""

    def tensors(self, config: ModelConfig) -> tuple[LayerTensor, ...]:
        own, heads, hidden = config.variant.attention, config.num_attention_heads, config.hidden_size
        assert isinstance(own, Grouped)
        shapes = {
            "q_proj": (heads * own.width, hidden),
            "k_proj": (own.groups * own.width, hidden),
            "v_proj": (own.groups * own.width, hidden),
            "out_proj": (hidden, heads * own.width),
        }
        split = {"q_proj": heads, "k_proj": own.groups, "v_proj": own.groups}
        return tuple(
            LayerTensor(
                name=f"self_attn.{name}.weight", shape=shape, part="attention", heads=split.get(name, 1),
                residual=name == "out_proj",
            )
            for name, shape in shapes.items()
        )  # fmt: skip

    def streams(self, config: ModelConfig) -> tuple[Stream, ...]:
        own = config.variant.attention
        assert isinstance(own, Grouped)
        return tuple(Stream(name=name, width=own.groups * own.width) for name in ("keys", "values"))

    def index_inputs(self, config: ModelConfig) -> int:
        return config.hidden_size

    def pair_products(self, config: ModelConfig, *, absorbed: bool) -> int:
        own = config.variant.attention
        assert isinstance(own, Grouped)
        return 2 * config.num_attention_heads * own.width

    def row_values(self, config: ModelConfig) -> int:
        return 100

    def key_values(self, config: ModelConfig) -> int:
        return 0


@pytest.fixture
def grouped() -> Iterator[ModelConfig]:
    register_attention(Grouped, GroupedTable())
    yield preset("tiny").replace(variant=Variant(attention=Grouped(groups=2, width=6)))
    del variant._KINDS["attention"]["grouped"], layers._TABLES[Grouped]


def test_names_of_a_made_up_attention(grouped: ModelConfig) -> None:
    specs, hidden = checkpoint_tensors(grouped), grouped.hidden_size
    shape = {spec.public: spec.shape for spec in specs.values()}
    assert shape["model.layers.3.self_attn.k_proj.weight"] == (12, hidden)
    assert shape["model.layers.0.self_attn.indexer.wq_b.weight"] == (32, hidden)
    assert not any("kv_a" in name or "q_lora" in name for name in specs)
    assert specs["model.layers.1.self_attn.out_proj.weight"].quantizable
    assert specs.keys() - checkpoint_tensors(preset("tiny")).keys() == {
        f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(7) for name in ("q", "k", "v", "out")
    }


def test_planner_of_a_made_up_attention(grouped: ModelConfig) -> None:
    count, per_layer = count_parameters(grouped), 32 * 6 * (2 + 2 + 2 + 2)
    assert count.attention == 6 * per_layer
    assert count.total == sum(row.size for row in model_tensors(grouped) if row.role is not Role.ROUTER_BIAS)
    full = len(grouped.share_plan.full_layers)
    streams = cache_bytes(grouped, 2).streams
    assert streams == {"keys": 6 * 24, "values": 6 * 24, INDEX_KEYS: full * 32}
    assert cache_row_bytes(grouped, 2) == (48, 32)
    assert attention_flops(grouped, 10) == 2 * 2 * 2 * 6 * 10
    assert token_flops(grouped, 100).projections == 2 * 6 * per_layer
    assert plan_memory(grouped, 100).total > 0


def test_cache_of_a_made_up_attention(grouped: ModelConfig) -> None:
    cache = PagedCache(grouped, 4, 4, draft=True)
    assert cache.nbytes == 16 * cache_bytes_per_token(grouped, 4, draft=True)
    view = cache.view([[3, 1]], [(0, 6)])
    keys, values = torch.randn(2, 6, 12)
    view.write(5, "keys", keys)
    view.write(5, "values", values)
    assert torch.equal(view.read(5, "keys", 0), keys)
    assert torch.equal(view.read(5, "values", 0), values)
    with pytest.raises(ValueError, match="layer 5 keeps no latents in this cache"):
        view.read(5, "latents", 0)


def test_rows_are_the_models_own() -> None:
    """Name and shape of every parameter and buffer, heads and parts of their rows."""
    config = preset("tiny").replace(attention_bias=True)
    with torch.device("meta"):
        state = GlmMoeDsa(config).state_dict()
    rows = {row.name: row for row in model_tensors(config)}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {n: row.shape for n, row in rows.items()}
    for row in rows.values():
        assert row.shape[0] % row.heads == 0
        rows_of_a_head = row.shape[-2] // row.heads if row.split else 0
        assert sum(row.split) == rows_of_a_head, row.name
        assert row.size == state[row.name].numel()


def test_streams_follow_the_share_plan() -> None:
    config = preset("tiny")
    for layer in range(config.num_hidden_layers + 1):
        names = [stream.name for stream in layer_streams(config, layer)]
        is_full = layer == config.num_hidden_layers or config.share_plan.is_full(layer)
        assert names == (["latents", INDEX_KEYS] if is_full else ["latents"])
