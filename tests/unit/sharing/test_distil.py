"""Distillation: two forms of one loss, its floor, weights per layer, low-rank training, and the command."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from indexshare import ops
from indexshare.adapt.low_rank import LowRankLinear, add_low_rank, merged
from indexshare.cache.view import InFlightView
from indexshare.checkpoint.load import load_model, save_model
from indexshare.config.presets import preset
from indexshare.config.share_plan import SharePlan
from indexshare.config.variant import GroupedAttention, Variant
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selection import FULL_ATTENTION
from indexshare.ops import KLRows, Teacher
from indexshare.ops.indexer import loss as fast
from indexshare.ops.indexer import reference
from indexshare.sharing.distil import Distillation
from indexshare.sharing.floors import group_floors, under_plan, window_loss
from indexshare.train.objectives import Indexer
from indexshare.train.recipe import prepare
from indexshare.train.trainer import Trainer
from tests.unit.sharing.conftest import Result, noisy

Run = Callable[..., Result]
WEIGHTS = (1.0, 1.0, 1.0, 3.0, 0.5, 2.0)


def learned(model: GlmMoeDsa, ids: Tensor, *, below: int, **settings: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss of the objective, summed over rows, and the indexers' gradients."""
    objective = Indexer(target="served", **settings)
    seen = objective.observer(model)
    model.trunk(ids, InFlightView([20, ids.numel() - 20]), full_attention_below=below, observer=seen)
    assert seen.loss is not None
    names = [name for name, _ in model.named_parameters() if "indexer" in name and name.startswith("layers.")]
    parameters = [model.get_parameter(name) for name in names]
    grads = torch.autograd.grad(seen.loss, parameters)
    return float(seen.loss.detach()), dict(zip(names, grads, strict=True))


@pytest.mark.parametrize("weights", [(), WEIGHTS])
@pytest.mark.parametrize(("keys", "below"), [("all", FULL_ATTENTION), ("all", 0), ("selected", 0)])
def test_both_forms_of_the_loss_have_one_gradient(
    sharing_config: Any, keys: str, below: int, weights: tuple[float, ...]
) -> None:
    """IndexCache, proposition 1, through the whole model in float64; the difference of the losses is the floor."""
    model = noisy(sharing_config).double()
    ids = torch.randint(0, 320, (48,), generator=torch.Generator().manual_seed(3))
    each, grads = learned(model, ids, below=below, keys=keys, layer_weights=weights)
    mean, others = learned(model, ids, below=below, keys=keys, layer_weights=weights, form="mean")
    assert each > mean > 0
    for name, grad in grads.items():
        assert float((grad - others[name]).abs().max()) < 1e-6, name
        assert float((grad - others[name]).abs().max()) <= 1e-9 * max(1.0, float(grad.abs().max()))
    assert max(float(grad.abs().max()) for grad in grads.values()) > 1e-3


def random_case(dtype: torch.dtype) -> tuple[tuple[Tensor, ...], list[Teacher]]:
    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=dtype)

    teachers = [Teacher(noise(12, 3, 6), noise(12, 6), 0.4, weight) for weight in (0.5, 0.2, 0.3)]
    return (noise(12, 2, 4), noise(12, 2), noise(12, 4)), teachers


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_mean_form_agrees_with_its_reference(dtype: torch.dtype) -> None:
    tensors, teachers = random_case(dtype)
    slots = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(n))[:4] for n in range(3)])
    groups = [KLRows(torch.arange(1, 8), first=1), KLRows(torch.arange(8, 11), slots=slots)]
    results = []
    for function in (fast.indexer_kl_mean, reference.indexer_kl_mean, ops.indexer_kl_mean):
        inputs = [tensor.clone().requires_grad_() for tensor in tensors]
        value = function(*inputs, teachers, groups)
        results.append((value.detach(), torch.autograd.grad(value, inputs)))
    for value, grads in results:
        torch.testing.assert_close(value, results[1][0])
        torch.testing.assert_close(grads, results[1][1])


def test_one_teacher_is_the_plain_loss() -> None:
    tensors, teachers = random_case(torch.float32)
    groups, one = [KLRows(torch.arange(12))], teachers[0]
    alone = Teacher(one.queries, one.latents, one.scale)
    assert torch.equal(
        ops.indexer_kl_mean(*tensors, [alone], groups),
        ops.indexer_kl(*tensors, one.queries, one.latents, groups, one.scale),
    )


@torch.no_grad()
@pytest.mark.parametrize("weights", [(), WEIGHTS])
def test_the_floor_is_the_difference_of_the_two_forms(sharing_config: Any, weights: tuple[float, ...]) -> None:
    model = noisy(sharing_config).double()
    ids = torch.randint(0, 320, (1, 40), generator=torch.Generator().manual_seed(4))
    floors = group_floors(model, ids, queries=1000, layer_weights=weights)
    assert [group.layers for group in floors] == [(0,), (1,), (2, 3, 4, 5)]
    assert floors[0].floor == 0.0 and floors[2].floor > 0
    assert floors[2].loss > floors[2].floor and floors[0].loss == pytest.approx(floors[0].kl[0])
    sums = []
    for form in ("each", "mean"):
        objective = Indexer(target="served", keys="all", form=form, layer_weights=weights)
        seen = objective.observer(model)
        # the same passes, but counting only the rows that have a selection
        seen._groups = lambda record: [KLRows(torch.arange(8, 40))]  # type: ignore[method-assign]
        model.trunk(ids[0], InFlightView([40]), observer=seen)
        assert seen.loss is not None
        sums.append(float(seen.loss) / 32)
    assert sum(group.loss for group in floors) == pytest.approx(sums[0], abs=1e-5)
    assert sum(group.floor for group in floors) == pytest.approx(sums[0] - sums[1], abs=1e-5)


def test_a_model_under_another_plan(sharing_model: GlmMoeDsa) -> None:
    rows = torch.randint(0, 320, (2, 41), generator=torch.Generator().manual_seed(5))
    same = under_plan(sharing_model, sharing_model.plan)
    assert window_loss(same, rows) == window_loss(sharing_model, rows)
    copied = under_plan(sharing_model, SharePlan.from_pattern("FSSFSS"))
    assert torch.equal(
        copied.layers[3].self_attn.indexer.wk.weight, sharing_model.layers[2].self_attn.indexer.wk.weight
    )
    assert math.isfinite(window_loss(copied, rows))


def test_weights_and_forms_that_cannot_be_are_refused(sharing_config: Any) -> None:
    with pytest.raises(ValueError, match="its target is 'own'"):
        Indexer(form="mean")
    with pytest.raises(ValueError, match="for 2 layers; expected 6"):
        Indexer(target="served", layer_weights=(1.0, 1.0)).check(sequence_length=32, model=sharing_config)
    with pytest.raises(ValueError, match=r"zero for all layers served by \[1\]"):
        Indexer(target="served", layer_weights=(1, 0, 1, 1, 1, 1.0)).check(sequence_length=32, model=sharing_config)
    assert "form" not in Indexer(target="served").record()
    assert Indexer(target="served", form="mean").record()["form"] == "mean"


def test_low_rank_matrices_change_nothing_until_trained(sharing_config: Any) -> None:
    model = noisy(sharing_config)
    ids = torch.randint(0, 320, (1, 30), generator=torch.Generator().manual_seed(6))
    before, plain = model(ids), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    add_low_rank(model, 3, seed=0)
    assert torch.equal(model(ids), before)
    assert isinstance(model.layers[1].self_attn.indexer.wk, LowRankLinear)
    back = merged(model.state_dict())
    assert back.keys() == plain.keys() and all(torch.equal(back[name], plain[name]) for name in plain)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LowRankLinear):
                module.low_rank_up.normal_()
    other = noisy(sharing_config)
    other.load_state_dict(merged(model.state_dict()))
    torch.testing.assert_close(other(ids), model(ids), atol=1e-4, rtol=1e-4)


def command(full_dir: Path, text_dir: Path, out: Path, *more: object) -> tuple[object, ...]:
    return (
        "distill", full_dir, "--text", text_dir, "--length", "32", "--rows", "2", "--warmup-tokens", "256",
        "--tokens", "256", "--out", out, "--quiet", *more,
    )  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(("--pattern", "FSFSSS"), marks=pytest.mark.slow),
        ("--every", "3", "--form", "mean", "--weights", "1,1,2,1,1,2", "--lora", "2"),
        pytest.param(("--every", "4", "--offset", "3", "--rate", "0.5", "--lookups", "0.5"), marks=pytest.mark.slow),
    ],
)
def test_the_command_trains_any_plan(run: Run, full_dir: Path, text_dir: Path, tmp_path: Path, more: Any) -> None:
    done = run(*command(full_dir, text_dir, tmp_path / "run", "--json", *more))
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    model = load_model(facts["model"])
    assert facts["finished"] and model.plan.pattern == facts["pattern"]
    assert [group["full"] for group in facts["groups"]] == list(model.plan.full_layers)
    for group in facts["groups"]:
        assert group["after"]["loss"] >= group["after"]["floor"] >= 0
    assert set(facts["loss"]) == {"start", "untrained", "distilled"}
    again = run(*command(full_dir, text_dir, tmp_path / "run", "--json", *more))
    assert again.code == 0 and json.loads(again.out) == facts


@pytest.mark.slow
def test_warm_up_alone_moves_indexers_alone_and_lowers_their_loss(
    run: Run, full_dir: Path, text_dir: Path, tmp_path: Path
) -> None:
    words = list(command(full_dir, text_dir, tmp_path / "run", "--pattern", "FSFSSS", "--json"))
    words[words.index("--tokens") + 1], words[words.index("--warmup-tokens") + 1] = "0", "4K"
    done = run(*words)
    assert done.code == 0, done.err
    facts = json.loads(done.out)
    before, after = load_model(full_dir).state_dict(), load_model(facts["model"]).state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor.float(), before[name].float())}
    assert moved and all("indexer" in name for name in moved)
    assert sum(g["after"]["loss"] for g in facts["groups"]) < sum(g["before"]["loss"] for g in facts["groups"])


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "give the plan by --pattern"),
        (("--pattern", "FS"), "has 2 letters, the model 6 layers"),
        (("--pattern", "SFSSSS"), "layer 0"),
        (("--pattern", "FSFSSS", "--every", "2"), "one of them"),
        (("--pattern", "FSFSSS", "--offset", "2"), "--offset goes with --every"),
        (("--every", "2", "--weights", "1,2"), "for 2 layers; expected 6"),
        (("--every", "2", "--weights", "a"), "--weights is 'a'"),
        (("--every", "2", "--lora", "0"), "--lora is 0; expected a rank from 1 to"),
        (("--every", "2", "--lora", "999"), "--lora is 999"),
        (("--every", "2", "--rate", "0"), "--rate 0"),
        (("--every", "2", "--length", "8"), "nothing is chosen"),
        (("--every", "2", "--length", "4000"), "4,001 or shorter|shorter|more text"),
    ],
)
def test_what_the_command_refuses(
    run: Run, full_dir: Path, text_dir: Path, tmp_path: Path, more: tuple[str, ...], words: str
) -> None:
    arguments = list(command(full_dir, text_dir, tmp_path / "run"))
    if "--length" in more:
        at = arguments.index("--length")
        del arguments[at : at + 2]
    done = run(*arguments, *more)
    assert done.code == 2 and any(each in done.err for each in words.split("|")), done.err


def test_low_rank_stages_resume_exactly_and_hand_on_what_they_learned(
    full_dir: Path, text_dir: Path, tmp_path: Path
) -> None:
    asked = Distillation(
        start=str(full_dir), plan=SharePlan.from_pattern("FSFSSS"), text=str(text_dir), warmup_tokens=256,
        joint_tokens=256, length=32, rows=2, rank=2,
    )  # fmt: skip
    recipe = asked.recipe()
    data = prepare(recipe, tmp_path / "data")
    whole = Trainer(recipe, tmp_path / "whole", data)
    losses = [whole.advance()["loss"] for _ in range(8)]
    (tmp_path / "parts").mkdir()
    again = list[float]()
    for start in (0, 2, 5):  # in the warm-up, at its end but one, in the joint stage
        trainer = Trainer(recipe, tmp_path / "parts", data)
        assert trainer.step == start
        again += [trainer.advance()["loss"] for _ in range({0: 2, 2: 3, 5: 3}[start])]
        trainer.save()
    assert again == losses
    for stage in recipe.stages:
        assert stage.indexer_rank == 2
    moving = {name for name, parameter in whole.model.named_parameters() if parameter.requires_grad}
    indexers = {name for name in moving if "indexer" in name}
    assert indexers and all("low_rank" in name for name in indexers) and len(moving) > len(indexers)


def test_the_second_stage_begins_where_the_first_ended(full_dir: Path, text_dir: Path, tmp_path: Path) -> None:
    asked = Distillation(
        start=str(full_dir), plan=SharePlan.from_pattern("FSFSSS"), text=str(text_dir), warmup_tokens=256,
        joint_tokens=64, length=32, rows=2, rank=2, rate=3.0,
    )  # fmt: skip
    recipe = asked.recipe()
    trainer = Trainer(recipe, tmp_path / "run", prepare(recipe, tmp_path / "data"))
    first = {name: tensor.clone() for name, tensor in merged(trainer.model.state_dict()).items()}
    for _ in range(4):
        trainer.advance()
    learned = {name: tensor.clone() for name, tensor in merged(trainer.model.state_dict()).items()}
    trainer.advance()  # into the joint stage
    base = trainer.model.state_dict()["layers.2.self_attn.indexer.wk.base"]
    assert torch.equal(base, learned["layers.2.self_attn.indexer.wk.weight"])
    assert not torch.equal(base, first["layers.2.self_attn.indexer.wk.weight"])


def test_attention_that_shows_nothing_is_refused(tmp_path: Path) -> None:
    attention = GroupedAttention(kv_heads=2, head_dim=12)
    config = preset("tiny").replace(num_attention_heads=16, variant=Variant(attention=attention))
    save_model(GlmMoeDsa(config).initialise(0), tmp_path / "grouped")
    with pytest.raises(ValueError, match="latent attention"):
        Distillation(start=str(tmp_path / "grouped"), plan=config.share_plan, length=32)
