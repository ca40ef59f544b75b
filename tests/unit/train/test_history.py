"""What was trained is what is recorded, however the recipe changes between two starts of a run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from indexshare.train.checkpoint import load_checkpoint, save_checkpoint
from indexshare.train.loop import run
from indexshare.train.objectives import Balance, Draft, NextToken
from indexshare.train.recipe import Recipe, prepare
from indexshare.train.trainer import Trainer

MakeRecipe = Callable[..., Recipe]


def train(recipe: Recipe, folder: Path) -> Path | None:
    return run(recipe, folder, quiet=True)


def trainer_of(recipe: Recipe, folder: Path) -> Trainer:
    return Trainer(recipe, folder, prepare(recipe, folder / "data"))


def advance_to(trainer: Trainer, step: int) -> None:
    while trainer.step < step:
        trainer.advance()


def faster(stage: Any, **rates: float) -> Any:
    return replace(stage, optim=replace(stage.optim, **rates))


def recorded(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "model" / "training.json").read_text())
    return record


def test_a_finished_run_keeps_its_record(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    train(recipe, tmp_path)
    before = recorded(tmp_path)
    first, *others = recipe.stages
    changed = replace(recipe, stages=(faster(first, muon_lr=2e-2), *others))
    message = r"is finished, .*stage 'pretrain' .*optim\.muon_lr was 0\.01, is now 0\.02.*use another folder, or undo"
    with pytest.raises(ValueError, match=message):
        train(changed, tmp_path)
    with pytest.raises(ValueError, match=r"differs from the recipe's: index_topk was 8, is now 4; use another folder"):
        train(replace(recipe, model=recipe.model.replace(index_topk=4)), tmp_path)
    assert recorded(tmp_path) == before
    assert train(replace(recipe, evaluate_every=7), tmp_path) is not None and recorded(tmp_path) == before
    longer = replace(recipe, stages=(*recipe.stages, replace(recipe.stages[-1], name="more").without(Draft)))
    train(longer, tmp_path)
    assert [stage["name"] for stage in recorded(tmp_path)["stages"]][-1] == "more"
    assert recorded(tmp_path)["stages"][:-1] == before["stages"]


def test_rates_of_every_part_of_a_stage_are_recorded(make_recipe: MakeRecipe, tmp_path: Path, capsys: Any) -> None:
    first, second, *others = make_recipe().stages
    long = replace(first, tokens=4 * 128)
    recipe = make_recipe(stages=(long, second, *others))

    def go_on(stages: tuple[Any, ...], step: int) -> None:
        trainer = trainer_of(replace(recipe, stages=stages), tmp_path)
        for line in trainer.notes:
            print(line)
        advance_to(trainer, step)
        trainer.save()

    go_on((long, second, *others), 1)
    go_on((faster(long, muon_lr=5e-3), second, *others), 2)
    assert "from update 2 of stage 'pretrain' on: optim.muon_lr was 0.01, is now 0.005" in capsys.readouterr().out
    go_on((faster(long, muon_lr=4e-3, adam_lr=4e-3), second, *others), 5)
    later = faster(second, indexer_lr=1e-4)
    go_on((faster(long, muon_lr=3.0), later, *others), 6)
    out = capsys.readouterr().out
    assert "stage 'pretrain' was trained before, and stays recorded as it was: optim.muon_lr was 0.004, is now" in out
    final = replace(recipe, stages=(faster(long, muon_lr=4e-3, adam_lr=4e-3), later, *others))
    assert train(final, tmp_path) is not None
    stages = recorded(tmp_path)["stages"]
    assert stages[0]["optim"]["muon_lr"] == 1e-2 and stages[0]["changed"] == [
        {"from_update": 2, "optim.muon_lr": 5e-3},
        {"from_update": 3, "optim.muon_lr": 4e-3, "optim.adam_lr": 4e-3},
    ]
    assert stages[1]["changed"] == [{"from_update": 2, "optim.indexer_lr": 1e-4}]
    assert not any("changed" in stage for stage in stages[2:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mixture": {"text": 1.0}},
            r"mixture\.text was 0\.95, is now 1\.0, mixture\.retrieval was 0\.05, is now None",
        ),
        (
            {"objectives": (NextToken(), Draft(weight=0.5, after=0.5), Balance())},
            r"objectives\.Draft\.weight was 0\.3, is now 0\.5",
        ),
        ({"attention": "sparse"}, r"attention was 'full', is now 'sparse'"),
    ],
)
def test_a_stage_that_has_begun_learns_the_same(
    changes: dict[str, Any], message: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe()
    trainer = trainer_of(recipe, tmp_path)
    advance_to(trainer, 1)
    trainer.save()
    first, *others = recipe.stages
    with pytest.raises(
        ValueError, match=rf"at update 1 of stage 'pretrain', in which the recipe has changed: {message}"
    ):
        trainer_of(replace(recipe, stages=(replace(first, **changes), *others)), tmp_path)
    assert trainer_of(recipe, tmp_path).notes == []


def test_checkpoints_that_do_not_say_are_taken_by_the_recipe(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    trainer = trainer_of(recipe, tmp_path)
    advance_to(trainer, 3)
    trainer.save()
    state = load_checkpoint(tmp_path)
    assert state is not None and [s["name"] for s in state.pop("history")["stages"]] == ["pretrain", "indexer_warmup"]
    save_checkpoint(tmp_path, state)
    train(recipe, tmp_path)
    assert [stage["name"] for stage in recorded(tmp_path)["stages"]] == [stage.name for stage in recipe.stages]
