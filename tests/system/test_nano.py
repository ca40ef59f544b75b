"""The shipped model: loads anywhere, predicts code it has not seen, and is the same model in transformers."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from indexshare import LLM, SamplingParams, load_model
from indexshare.cache.view import InFlightView
from indexshare.config import preset
from indexshare.config.shipped import model_directory
from indexshare.eval.held_out import xz_bits
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selection import FULL_ATTENTION
from indexshare.model.weights import LoadReport
from indexshare.planner.memory import count_parameters
from indexshare.tokenizer import Tokenizer
from indexshare.train.objectives import token_losses
from tests.tolerance import TOL

MAX_BYTES = 25_000_000
# Written for this test; no file of any package.
UNSEEN = Path(__file__).with_name("unseen_example.txt")


@functools.cache
def nano(dtype: str = "float32") -> GlmMoeDsa:
    return load_model("nano", dtype=dtype)


def unseen_ids() -> torch.Tensor:
    tokenizer = Tokenizer.load(model_directory("nano"))
    return torch.tensor(tokenizer.encode(UNSEEN.read_text(encoding="utf-8"), parse_special=False))


def test_directory_is_complete_and_small() -> None:
    folder = model_directory("nano")
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= MAX_BYTES
    for name in ("config.json", "model.safetensors", "tokenizer.json", "training.json", "README.md"):
        assert (folder / name).is_file(), name
    training = json.loads((folder / "training.json").read_text())
    assert training["recipe"] == "nano" and [s["name"] for s in training["stages"]][-1] == "index_share"


def test_it_is_the_preset_and_loads_strictly() -> None:
    report = LoadReport()
    model = load_model("nano", report=report)
    assert not report.dropped
    wanted = preset("nano")
    assert model.config.share_plan.pattern == "FFFSSSFSSSFSS" == wanted.share_plan.pattern
    assert sum(p.numel() for p in model.parameters()) == count_parameters(wanted).total
    assert model.mtp is not None


@torch.no_grad()
def test_unseen_code_costs_fewer_bits_than_xz_and_the_selection_hardly_any() -> None:
    ids, model = unseen_ids(), nano()
    assert len(ids) > 2 * model.config.index_topk
    bits = {}
    for name, below in (("sparse", 0), ("full", FULL_ATTENTION)):
        hidden = model.trunk(ids[:-1], InFlightView([len(ids) - 1]), full_attention_below=below)
        bits[name] = float(token_losses(hidden, model.lm_head.weight, ids[1:]).sum()) / math.log(2)
    assert bits["sparse"] < 0.9 * xz_bits(UNSEEN.read_text(encoding="utf-8"))
    assert bits["sparse"] < 1.01 * bits["full"]


def public_nano(**changes: int) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = model_directory("nano")
    return transformers.GlmMoeDsaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **changes
    )


@torch.no_grad()
def test_transformers_computes_the_same_logits() -> None:
    ids = unseen_ids()[None, :700]
    ours = load_model("nano", dtype="float32", config_overrides={"index_topk": 1024})
    difference = (public_nano(index_topk=1024)(ids).logits - ours(ids)).abs().amax()
    assert difference < TOL["public prefill logits of nano", "float32"].atol


@torch.no_grad()
def test_transformers_selects_to_the_same_effect() -> None:
    """Beyond `index_topk` a few queries have equal scores at the threshold: transformers keeps any of them, we the
    earliest. One such choice moves the layers above a little for all later tokens, so losses are compared, not logits.
    """
    ids = unseen_ids()[None, :1200]
    losses = []
    for model in (public_nano(), nano()):
        output = model(ids[:, :-1])
        logits = output if isinstance(output, torch.Tensor) else output.logits
        losses.append(float(torch.nn.functional.cross_entropy(logits[0, 256:], ids[0, 257:])))
    assert losses[0] == pytest.approx(losses[1], rel=TOL["public loss of nano", "float32"].rtol)


def test_greedy_text_does_not_depend_on_batch_or_chunk() -> None:
    llm, other = LLM("nano", prefill_chunk=300), LLM("nano", prefill_chunk=37)
    text = UNSEEN.read_text(encoding="utf-8")
    prompts = [text[:1500], "import os\nimport sys\n\n\ndef main():\n", text[:400]]
    params = SamplingParams(max_tokens=12, temperature=0.0)
    together = llm.generate(prompts, params)
    alone = [other.generate(prompt, params)[0] for prompt in prompts]
    assert [o.token_ids for o in together] == [o.token_ids for o in alone]
    assert all(o.text for o in together)
