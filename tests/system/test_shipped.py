"""The shipped models: load anywhere, predict code they have not seen, and are the same models in transformers."""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from indexshare import LLM, SamplingParams, load_model
from indexshare.cache.view import InFlightView
from indexshare.checkpoint.load import LoadReport
from indexshare.config import preset
from indexshare.config.shipped import model_directory, shipped_models
from indexshare.eval.held_out import xz_bits
from indexshare.eval.retrieval import evaluate_retrieval
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selection import FULL_ATTENTION
from indexshare.planner.memory import count_parameters
from indexshare.text.tokenizer import Tokenizer
from indexshare.train.losses import token_losses
from tests.tolerance import TOL

# Written for this test; no file of any package.
UNSEEN = Path(__file__).with_name("unseen_example.txt")


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """What is promised of a model: size of its folder, sharing, and bits on the unseen file.

    Attributes:
        of_xz: most bits, as a part of those of `xz -9e`.
        of_full: most bits, as a part of those with full attention.
    """

    name: str
    max_bytes: int
    pattern: str
    of_xz: float
    of_full: float


MODELS = (
    Shipped(name="nano", max_bytes=25_000_000, pattern="FFFSSSFSSSFSS", of_xz=0.9, of_full=1.01),
    Shipped(name="pico", max_bytes=3_000_000, pattern="FFFSSS", of_xz=1.0, of_full=1.01),
)
both = pytest.mark.parametrize("shipped", MODELS, ids=lambda shipped: shipped.name)


@functools.cache
def model_of(name: str) -> GlmMoeDsa:
    return load_model(name, dtype="float32")


def unseen_ids(name: str) -> torch.Tensor:
    tokenizer = Tokenizer.load(model_directory(name))
    return torch.tensor(tokenizer.encode(UNSEEN.read_text(encoding="utf-8"), parse_special=False))


def test_these_are_all() -> None:
    assert set(shipped_models()) == {shipped.name for shipped in MODELS}


@both
def test_directory_is_complete_and_small(shipped: Shipped) -> None:
    folder = model_directory(shipped.name)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= shipped.max_bytes
    for name in ("config.json", "model.safetensors", "tokenizer.json", "training.json", "README.md"):
        assert (folder / name).is_file(), name
    training = json.loads((folder / "training.json").read_text())
    assert training["recipe"] == shipped.name and training["stages"][-1]["name"].startswith("index_share")


@both
def test_it_is_the_preset_and_loads_strictly(shipped: Shipped) -> None:
    report = LoadReport()
    model = load_model(shipped.name, report=report)
    assert not report.dropped
    wanted = preset(shipped.name)
    assert model.config.share_plan.pattern == shipped.pattern == wanted.share_plan.pattern
    assert sum(p.numel() for p in model.parameters()) == count_parameters(wanted).total
    assert model.mtp is not None


@both
@torch.no_grad()
def test_unseen_code_costs_fewer_bits_than_xz_and_the_selection_hardly_any(shipped: Shipped) -> None:
    ids, model = unseen_ids(shipped.name), model_of(shipped.name)
    assert len(ids) > 2 * model.config.index_topk
    bits = {}
    for name, below in (("sparse", 0), ("full", FULL_ATTENTION)):
        hidden = model.trunk(ids[:-1], InFlightView([len(ids) - 1]), full_attention_below=below)
        bits[name] = float(token_losses(hidden, model.lm_head.weight, ids[1:]).sum()) / math.log(2)
    assert bits["sparse"] < shipped.of_xz * xz_bits(UNSEEN.read_text(encoding="utf-8"))
    assert bits["sparse"] < shipped.of_full * bits["full"]


def public(name: str, **changes: int) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.GlmMoeDsaForCausalLM.from_pretrained(
        model_directory(name), dtype=torch.float32, attn_implementation="eager", **changes
    )


@pytest.mark.slow
def test_nano_finds_what_it_needs_by_its_selection() -> None:
    """At 8,192 tokens, all depths; seeing only the most recent tokens it finds hardly anything."""
    tokenizer = Tokenizer.load(model_directory("nano"))
    for suite in ("needle", "recall"):
        report = evaluate_retrieval(
            model_of("nano"), tokenizer, suite, lengths=(8192,), samples=2, attention=("selection", "recent")
        )
        found, recent = (report.accuracy(kind, 8192).value for kind in ("selection", "recent"))
        assert found >= 0.9 and recent < 0.2, suite


@both
@torch.no_grad()
def test_transformers_computes_the_same_logits(shipped: Shipped) -> None:
    ids = unseen_ids(shipped.name)[None, :700]
    ours = load_model(shipped.name, dtype="float32", config_overrides={"index_topk": 1024})
    difference = (public(shipped.name, index_topk=1024)(ids).logits - ours(ids)).abs().amax()
    assert difference < TOL[f"public prefill logits of {shipped.name}", "float32"].atol


@both
@torch.no_grad()
def test_transformers_selects_to_the_same_effect(shipped: Shipped) -> None:
    """Beyond `index_topk` a few queries have equal scores at the threshold: transformers keeps any of them, we the
    earliest. One such choice moves the layers above a little for all later tokens, so losses are compared, not logits.
    """
    ids = unseen_ids(shipped.name)[None, :1200]
    losses = []
    for model in (public(shipped.name), model_of(shipped.name)):
        output = model(ids[:, :-1])
        logits = output if isinstance(output, torch.Tensor) else output.logits
        losses.append(float(torch.nn.functional.cross_entropy(logits[0, 256:], ids[0, 257:])))
    assert losses[0] == pytest.approx(losses[1], rel=TOL[f"public loss of {shipped.name}", "float32"].rtol)


@both
def test_greedy_text_does_not_depend_on_batch_or_chunk(shipped: Shipped) -> None:
    llm, other = LLM(shipped.name, prefill_chunk=300), LLM(shipped.name, prefill_chunk=37)
    text = UNSEEN.read_text(encoding="utf-8")
    prompts = [text[:1500], "import os\nimport sys\n\n\ndef main():\n", text[:400]]
    params = SamplingParams(max_tokens=12, temperature=0.0)
    together = llm.generate(prompts, params)
    alone = [other.generate(prompt, params)[0] for prompt in prompts]
    assert [o.token_ids for o in together] == [o.token_ids for o in alone]
    assert all(o.text for o in together)
