"""The end-to-end loss on total variation: overlaps, gradients by formula and differences, accepted drafts."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import indexshare
from indexshare import load_model, ops
from indexshare.cache.view import InFlightView
from indexshare.config import ModelConfig
from indexshare.config.shipped import model_directory
from indexshare.data.batch import Batch
from indexshare.data.corpus import TextFolder
from indexshare.engine.drafting.acceptance import settle
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import Observer
from indexshare.ops.loss import overlap, reference
from indexshare.train.loop import run
from indexshare.train.objectives import Activations, DraftOverlap, Progress
from indexshare.train.objectives.draft_overlap import missing_drafts
from indexshare.train.recipe import Recipe
from indexshare.train.stages import index_share
from indexshare.train.steps import draft_states
from tests.tolerance import TOL
from tests.unit.checkpoint.checkpoints import tiny_config

VOCAB, WIDTH = 37, 12


@pytest.mark.parametrize("rows", [1, 4, 5, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_chunked_overlap_equals_the_reference(
    monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(overlap, "CHUNK_BYTES", 5 * 4 * VOCAB)
    draft = torch.randn(rows, WIDTH, dtype=dtype, requires_grad=True)
    target, weight = torch.randn(rows, WIDTH, dtype=dtype), torch.randn(VOCAB, WIDTH, dtype=dtype) / 3
    factors = torch.randn(rows, dtype=dtype)
    found = [function(draft, target, weight) for function in (reference.linear_overlap, overlap.linear_overlap)]
    bounds = TOL["next-token loss", str(dtype)[6:]].bounds
    torch.testing.assert_close(found[1], found[0], **bounds)
    gradients = [torch.autograd.grad((factors * value).sum(), draft)[0] for value in found]
    torch.testing.assert_close(gradients[1], gradients[0], **bounds)


def test_the_gradient_by_differences_and_by_the_published_formula() -> None:
    draft = torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)
    target, weight = torch.randn(3, WIDTH, dtype=torch.float64), torch.randn(VOCAB, WIDTH, dtype=torch.float64) / 3
    assert torch.autograd.gradcheck(lambda x: overlap.linear_overlap(x, target, weight), draft)
    logits = (draft.detach() @ weight.T).requires_grad_()
    q, p = logits.softmax(-1), (target @ weight.T).softmax(-1)
    (gradient,) = torch.autograd.grad((1 - torch.minimum(p, q).sum(-1)).sum(), logits)
    below = (q <= p).double()
    torch.testing.assert_close(gradient, -q.detach() * (below - (below * q).sum(-1, keepdim=True)).detach())


def test_the_overlap_is_what_rejection_sampling_accepts() -> None:
    draft, target, weight = torch.randn(1, WIDTH), torch.randn(1, WIDTH), torch.randn(VOCAB, WIDTH) / 3
    share, draws = float(ops.linear_overlap(draft, target, weight)), 50_000
    q, p = ((x @ weight.T).double().softmax(-1).expand(draws, -1) for x in (draft, target))
    numbers = torch.rand(2, draws, dtype=torch.float64)
    stays, _ = settle(p, q, torch.multinomial(q[0], draws, replacement=True), *numbers)
    assert abs(float(stays.double().mean()) - share) < 4 * math.sqrt(share * (1 - share) / draws)


def a_case(steps: int) -> tuple[GlmMoeDsa, Batch, Tensor, list]:
    model = GlmMoeDsa(tiny_config(index_topk=6, vocab_size=VOCAB, initializer_range=0.2)).initialise(2)
    batch = Batch(tokens=torch.randint(VOCAB, (3, 20)))
    view = InFlightView([batch.length] * batch.rows)
    hidden = model.trunk(batch.inputs, view)
    states = draft_states(model, batch, hidden, view, steps, below=0, observer=Observer())
    return model, batch, hidden, states


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_loss_slot_by_slot(steps: int) -> None:
    model, batch, hidden, states = a_case(steps)
    found = missing_drafts(model, batch, hidden, states)
    with torch.no_grad():
        trunk = model.lm_head(hidden).softmax(-1).unflatten(0, (batch.rows, batch.length))
        drafts = [model.lm_head(state.hidden).softmax(-1).unflatten(0, (batch.rows, batch.length)) for state in states]
        expected = 0.0
        for row in range(batch.rows):
            for slot in range(batch.length - steps):
                accepted, together = 0.0, 1.0
                for step, draft in enumerate(drafts, start=1):
                    together *= float(torch.minimum(draft[row, slot], trunk[row, slot + step]).sum())
                    accepted += together
                expected += 1 - accepted / steps
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def test_only_the_draft_layer_learns_and_through_all_steps() -> None:
    model, batch, hidden, states = a_case(3)
    missing_drafts(model, batch, hidden, states).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved
    assert all(name.startswith("mtp.") for name in moved)
    assert "mtp.layer.self_attn.kv_b_proj.weight" in moved  # step 1's keys get gradients from later steps
    assert not any("indexer" in name for name in moved)


def test_cross_entropy_goes_first() -> None:
    model, batch, hidden, states = a_case(3)
    objective = DraftOverlap(steps=3, warm_up=0.5)
    names = []
    for step in (0, 49, 50, 99):
        seen = Activations(
            model=model, batch=batch, whole=batch, hidden=hidden, drafts=states, progress=Progress(step, 100)
        )
        names.append([term.name for term in objective.terms(seen, Observer())])
    assert names == [["draft_loss"], ["draft_loss"], ["draft_tv_loss"], ["draft_tv_loss"]]
    with pytest.raises(ValueError, match="warm_up 2"):
        DraftOverlap(warm_up=2.0)


def test_a_run_moves_the_draft_layer_alone(tmp_path: Path) -> None:
    config = ModelConfig.load(model_directory("pico"))
    stage = index_share(
        config.share_plan, tokens=4 * 512, sequence_length=256, batch_tokens=512, micro_tokens=256,
        mixture={"text": 1.0}, objectives=(DraftOverlap(steps=3, warm_up=0.5),),
    )  # fmt: skip
    text = TextFolder(path=str(Path(indexshare.__file__).parent / "config"), held_out=0.2)
    recipe = Recipe(
        name="drafts", model=config, text=text, stages=(stage,), start="pico", dtype="float32", held_out_windows=2
    )
    folder = run(recipe, tmp_path, quiet=True)
    before, after = (load_model(place, dtype="float32").state_dict() for place in (model_directory("pico"), folder))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith("mtp.") for name in moved)
