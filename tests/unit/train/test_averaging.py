"""The mean of the last weights of a stage: what it is, that a resumed run has the same, and its limits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from indexshare.train.averaging import WeightAverage
from indexshare.train.recipe import Recipe, prepare
from indexshare.train.stages import pretrain
from indexshare.train.trainer import Trainer


def recipe_of(make_recipe: Callable[..., Recipe], averaged: float, dtype: str = "float32") -> Recipe:
    recipe = make_recipe(dtype=dtype)
    first = replace(recipe.stages[0], tokens=6 * 128, averaged=averaged)
    return replace(recipe, stages=(first, *recipe.stages[1:]))


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def begin(recipe: Recipe, folder: Path) -> Trainer:
    return Trainer(recipe, folder, prepare(recipe, folder / "data"))


def test_a_stage_ends_with_the_mean_of_its_last_weights(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    plain, averaging = (begin(recipe_of(make_recipe, part), tmp_path / str(part)) for part in (0.0, 0.5))
    after = []
    for _ in range(6):
        plain.advance()
        averaging.advance()
        after.append(weights(plain))
        if len(after) < 6:
            assert all(torch.equal(value, after[-1][name]) for name, value in weights(averaging).items())
    learned = set(averaging.optimizer.masters)
    for name, value in weights(averaging).items():
        last = [each[name] for each in after[3:]]
        expected = torch.stack(last).double().mean(0) if name in learned else last[-1]
        torch.testing.assert_close(value.double(), expected.double(), atol=1e-6, rtol=1e-6)
    assert any(not torch.equal(weights(averaging)[name], after[-1][name]) for name in learned)
    averaging.advance()  # the next stage goes on from the mean, with a mean of its own
    assert averaging.stage_index == 1 and averaging.average.count == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [5, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (2, 4, 6))])
def test_a_resumed_run_has_the_same_mean(
    stop: int, dtype: str, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = recipe_of(make_recipe, 0.5, dtype)
    whole, part = begin(recipe, tmp_path / "whole"), begin(recipe, tmp_path / "part")
    for _ in range(7):
        whole.advance()
    for _ in range(stop):
        part.advance()
    part.save()
    again = begin(recipe, tmp_path / "part")
    assert again.average.count == max(0, stop - 3)
    for _ in range(7 - stop):
        again.advance()
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())


def test_checkpoints_from_before_go_on_without(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = recipe_of(make_recipe, 0.0)
    trainer = begin(recipe, tmp_path)
    trainer.advance()
    trainer.save()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del saved["average"]
    torch.save(saved, tmp_path / "checkpoint.pt")
    assert begin(recipe, tmp_path).step == 1


def test_the_mean_is_in_float32() -> None:
    average = WeightAverage()
    for value in (1.0, 2.0, 6.0):
        average.add({"w": torch.full((2,), value, dtype=torch.bfloat16)})
    assert average.mean["w"].dtype == torch.float32 and torch.allclose(average.mean["w"], torch.full((2,), 3.0))


def test_the_part_is_checked() -> None:
    shape = {"tokens": 640, "sequence_length": 32, "batch_tokens": 64}
    stage = pretrain(averaged=0.25, **shape)
    assert [step for step in range(1, 11) if stage.averages(step)] == [9, 10]
    assert not any(pretrain(**shape).averages(step) for step in range(1, 11))
    assert all(pretrain(averaged=1.0, **shape).averages(step) for step in range(1, 11))
    for bad in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"averaged is {bad}; expected a part between 0 and 1"):
            pretrain(averaged=bad, **shape)
