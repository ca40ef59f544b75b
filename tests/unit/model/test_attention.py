"""A made-up attention is one class, its rows of the table and two registrations: it loads, decodes and generates."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from indexshare.adapt.quantized import QuantLinear, quantize_weights
from indexshare.checkpoint.load import load_model
from indexshare.checkpoint.save import save_model
from indexshare.config import ModelConfig, layers, preset, variant
from indexshare.config.layers import AttentionTable, LayerTensor, Stream, register_attention
from indexshare.config.variant import Kind
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.model import attention
from indexshare.model.attention.base import Attention
from indexshare.model.forward_pass import ForwardPass
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.indexer import Indexer
from indexshare.model.selection import Selection
from indexshare.step.native_step import NativeStep
from tests.tolerance import TOL

VALUES = "values"


@dataclass(frozen=True)
class Mean(Kind):
    """Made up: the mean of what is selected, no scores at all."""

    kind: ClassVar[str] = "mean"

    width: int


class MeanTable(AttentionTable):
    """Its rows: projections to and from values of some width, which are what the cache keeps."""

    def tensors(self, config: ModelConfig) -> tuple[LayerTensor, ...]:
        hidden, width = config.hidden_size, _width(config)
        return (
            LayerTensor(name="self_attn.v_proj.weight", shape=(width, hidden), part="attention"),
            LayerTensor(name="self_attn.o_proj.weight", shape=(hidden, width), part="attention", residual=True),
        )

    def streams(self, config: ModelConfig) -> tuple[Stream, ...]:
        return (Stream(name=VALUES, width=_width(config)),)

    def index_inputs(self, config: ModelConfig) -> int:
        return config.hidden_size

    def pair_products(self, config: ModelConfig, *, absorbed: bool) -> int:
        return _width(config)

    def row_values(self, config: ModelConfig) -> int:
        return _width(config)

    def key_values(self, config: ModelConfig) -> int:
        return 0


def _width(config: ModelConfig) -> int:
    settings = config.variant.attention
    assert isinstance(settings, Mean)
    return settings.width


class MeanAttention(Attention):
    """The mean of the selected values, or of all of them up to the limit."""

    def __init__(self, config: ModelConfig, layer: int, source: int) -> None:
        super().__init__(layer, source)
        self.v_proj = nn.Linear(config.hidden_size, _width(config), bias=False)
        self.o_proj = nn.Linear(_width(config), config.hidden_size, bias=False)
        self.indexer = Indexer(config, layer, config.hidden_size) if self.full else None

    def forward(self, x: Tensor, pass_: ForwardPass, selection: Selection | None) -> tuple[Tensor, Selection]:
        pass_.view.write(self.layer, VALUES, self.v_proj(x))
        if self.indexer is not None:
            selection, _ = self.indexer(x, x, pass_)
        selection = self.inherited(selection)
        return self.reuse(x, pass_, selection), selection

    def store(self, x: Tensor, pass_: ForwardPass) -> None:
        pass_.view.write(self.layer, VALUES, self.v_proj(x))

    def reuse(self, x: Tensor, pass_: ForwardPass, selection: Selection) -> Tensor:
        view, chosen = pass_.view, dict(zip(selection.rows.tolist(), selection.positions, strict=True))
        means = []
        for i, span in enumerate(view.spans):
            values = view.read(self.layer, VALUES, i)
            for row in range(span.start, span.stop):
                every = torch.arange(span.past + row - span.start + 1)
                means.append(values[chosen.get(row, every)].mean(0))
        return self.o_proj(torch.stack(means))


@pytest.fixture
def config() -> Iterator[ModelConfig]:
    register_attention(Mean, MeanTable())
    attention.register("mean", MeanAttention)
    yield ModelConfig.from_dict(preset("tiny").to_dict() | {"indexshare": {"attention": {"kind": "mean", "width": 12}}})
    del variant._KINDS["attention"]["mean"], layers._TABLES[Mean], attention._KINDS["mean"]


def test_a_made_up_attention_runs_in_a_model_whose_configuration_names_it(config: ModelConfig, tmp_path: Path) -> None:
    save_model(GlmMoeDsa(config).initialise(5), tmp_path / "model")
    model = load_model(tmp_path / "model", dtype="float32").eval()
    assert {type(layer.self_attn) for layer in model.layers} == {MeanAttention}
    prompt = torch.randint(config.vocab_size, (3 * config.index_topk,)).tolist()
    llm = LLM(model, cache_tokens=128, prefill_chunk=7)
    view = llm.cache.view([[0]], [(0, 1)])
    with torch.inference_mode():
        assert NativeStep(model).refusal(view) == "attention of another kind: MeanAttention"
    output = llm.generate([prompt], SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True, logprobs=0))[0]
    assert output.logprobs is not None
    with torch.no_grad():
        logits = model(torch.tensor([prompt + output.token_ids[:-1]]))[0, -9:]
        full = model(torch.tensor([prompt]), full_attention_below=10**9)[0, -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(output.token_ids)[:, None])[:, 0]
    actual = torch.tensor([entry.logprob for entry in output.logprobs])
    torch.testing.assert_close(actual, expected, **TOL["engine logprobs", "float32"].bounds)
    assert (full - logits[0]).abs().max() > 1e-4, "the selection is what it attends to"


def test_its_draft_layer_and_gradients_work(config: ModelConfig) -> None:
    from indexshare.cache.view import InFlightView

    model = GlmMoeDsa(config.replace(num_nextn_predict_layers=1)).initialise(5)
    ids, view = torch.randint(config.vocab_size, (20,)), InFlightView([20])
    hidden = model.trunk(ids, view)
    assert model.mtp is not None
    state = model.mtp(model.embed_tokens(ids), hidden, view)
    model.mtp.step(model.embed_tokens(ids), state, view, 2).hidden.sum().backward()
    assert model.layers[0].self_attn.v_proj.weight.grad.abs().sum() > 0


def test_a_kind_without_mathematics_is_refused(config: ModelConfig) -> None:
    del attention._KINDS["mean"]
    try:
        with pytest.raises(ValueError, match="no attention of the kind 'mean' is registered; there are mla"):
            GlmMoeDsa(config)
    finally:
        attention.register("mean", MeanAttention)


@torch.no_grad()
def test_its_weights_are_packed(config: ModelConfig) -> None:
    model = GlmMoeDsa(config).initialise(5).eval()
    before = model.layers[2].self_attn.v_proj.weight.clone()
    quantize_weights(model, "int8")
    packed = model.layers[2].self_attn.v_proj
    assert isinstance(packed, QuantLinear) and 0 < (packed.weight - before).norm() < 0.01 * before.norm()
    assert model(torch.randint(config.vocab_size, (1, 30))).isfinite().all()
