"""A model that knows only llama.cpp's names and rules gives, from the file alone, what our model gives."""

from pathlib import Path

import pytest
import torch

from indexshare import ModelConfig, load_model
from indexshare.cache.view import InFlightView
from indexshare.config.rope import RopeParameters
from indexshare.config.shipped import model_directory
from indexshare.export.gguf import export_gguf
from indexshare.model.selection import FULL_ATTENTION
from indexshare.text.tokenizer import Tokenizer
from tests.tolerance import TOL
from tests.unit.export import llama_graph as graph_module
from tests.unit.export.cases import config_of, saved
from tests.unit.export.llama_graph import Graph

LENGTH = 40  # five times the index's top-k

CASES: dict[str, ModelConfig] = {
    "index heads widened from 16 to 64": config_of(),
    "index heads as wide as needed": config_of(index_head_dim=64),
    "index heads of halves, moved and widened": config_of(indexer_rope_interleave=False),
    "index heads of halves, moved": config_of(indexer_rope_interleave=False, index_head_dim=64),
    "tied, no draft layer": config_of(tie_word_embeddings=True, num_nextn_predict_layers=0),
    "groups of experts": config_of(n_routed_experts=8, n_group=4, topk_group=2),
    "all groups allowed, unnormalised": config_of(n_routed_experts=8, n_group=4, topk_group=4, norm_topk_prob=False),
    "every layer dense but the draft layer": config_of(mlp_layer_types=("dense",) * 4),
    "deepseek": config_of(
        model_type="deepseek_v32", indexer_types=("full",) * 4, indexer_rope_interleave=False, index_head_dim=64
    ),
    "deepseek with pairs, moved": config_of(
        model_type="deepseek_v32", indexer_types=("full",) * 4, rope_parameters=RopeParameters(rope_theta=1e4)
    ),
    "deepseek with yarn": config_of(
        model_type="deepseek_v32",
        indexer_types=("full",) * 4,
        indexer_rope_interleave=False,
        rope_parameters=RopeParameters(
            rope_theta=1e4,
            rope_type="yarn",
            factor=8.0,
            beta_fast=8.0,
            mscale=1.0,
            mscale_all_dim=1.0,
            original_max_position_embeddings=32,
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_file_alone_gives_our_logits(case: str, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", CASES[case])
    export_gguf(tmp_path / "model", tmp_path / "out.gguf", tokenizer=False)
    graph = Graph(tmp_path / "out.gguf")
    tokens = torch.randint(0, 256, (LENGTH,), generator=torch.Generator().manual_seed(3))
    hidden = model.trunk(tokens, InFlightView([LENGTH]))
    theirs = graph.hidden(tokens)
    bounds = TOL["llama.cpp graph", "float32"].bounds
    torch.testing.assert_close(graph.logits(theirs), model.logits(hidden), **bounds)
    dense = model.trunk(tokens, InFlightView([LENGTH]), full_attention_below=FULL_ATTENTION)
    assert (model.logits(hidden) - model.logits(dense)).abs().max() > 100 * bounds["atol"], "nothing was selected"
    if model.mtp is not None:
        following = tokens.roll(-1)
        view = InFlightView([LENGTH])
        ours = model.mtp(model.embed_tokens(following), hidden, view, full_attention_below=FULL_ATTENTION).hidden
        torch.testing.assert_close(graph.draft_hidden(following, theirs), ours, **bounds)


@torch.no_grad()
def test_the_shipped_model_predicts_alike(tmp_path: Path) -> None:
    export_gguf("nano", tmp_path / "out.gguf")
    graph, model = Graph(tmp_path / "out.gguf"), load_model("nano", dtype="float32")
    text = Path(graph_module.__file__).read_text(encoding="utf-8")
    tokens = torch.tensor(Tokenizer.load(model_directory("nano")).encode(text)[:600])
    assert len(tokens) > 2 * model.config.index_topk
    rows, following = torch.arange(len(tokens) - 1), tokens[1:]
    ours = model.logits(model.trunk(tokens, InFlightView([len(tokens)]))).log_softmax(-1)[rows, following]
    theirs = graph.logits(graph.hidden(tokens)).log_softmax(-1)[rows, following]
    assert (ours.mean() - theirs.mean()).abs() < TOL["llama.cpp nats per token", "float32"].atol


@torch.no_grad()
def test_q8_0_is_near(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", config_of())
    export_gguf(tmp_path / "model", tmp_path / "out.gguf", type="q8_0", tokenizer=False)
    graph = Graph(tmp_path / "out.gguf")
    tokens = torch.arange(8)  # within the top-k: a rounded score chooses other tokens
    ours = model.logits(model.trunk(tokens, InFlightView([8])))
    theirs = graph.logits(graph.hidden(tokens))
    assert (ours - theirs).pow(2).mean().sqrt() < TOL["q8_0 logits", "float32"].atol * ours.std()
