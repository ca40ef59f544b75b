"""New objectives and sources are code of their own and nothing else: made up here, they train and resume exactly."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indexshare.config import ModelConfig
from indexshare.data.batch import IGNORE, Batch, Window
from indexshare.data.sources import Draw, Material, Source, State, make_source, register, registry, source_names
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import Observer
from indexshare.train.gradients import Contribution, Gradients
from indexshare.train.loop import run
from indexshare.train.losses import next_token_loss_reference, token_losses
from indexshare.train.objectives import Activations, Balance, Draft, NextToken, Objective, Tally, Term, part_of
from indexshare.train.optim import MixedOptimizer, OptimConfig
from indexshare.train.recipe import Recipe, prepare
from indexshare.train.stages import Stage, pretrain
from indexshare.train.steps import train_batch
from indexshare.train.trainer import Trainer
from tests.tolerance import TOL

ROOT = Path(__file__).resolve().parents[3]
MakeRecipe = Callable[..., Recipe]
LENGTH, ROWS = 16, 4
SHAPE: dict[str, Any] = {"tokens": 4 * LENGTH * ROWS, "sequence_length": LENGTH, "batch_tokens": LENGTH * ROWS}


# A source of its own file: answers to sums, whose questions are not learned, each with a weight


class Sums(Source):
    """`a + b = c` in token ids; the answer alone is a target, and weighs as much as it has been asked for."""

    def __init__(self, material: Material, seed: int, *, largest: int = 100) -> None:
        self._end, self._seed, self._largest = material.tokenizer.eos_ids[0], seed, largest
        self._asked = 0

    def window(self, length: int) -> Window:
        rng = np.random.default_rng([self._seed, self._asked])
        self._asked += 1
        terms = rng.integers(self._largest, size=(length, 2))
        rows = np.concatenate((terms, terms.sum(1, keepdims=True), np.full((length, 1), self._end)), axis=1)
        answer = np.tile([False, False, True, False], length)[:length]
        return Window(
            tokens=rows.reshape(-1)[:length].astype(np.int64),
            mask=answer,
            extra={"worth": np.where(answer, 0.5 + self._asked, 0.0).astype(np.float32)},
        )

    def state(self) -> State:
        return {"asked": self._asked}

    def restore(self, state: State) -> None:
        self._asked = state["asked"]


# An objective of its own file: as a policy's loss will be, by token and by a number that the source gives


class Calm(Observer):
    """Remembers how many layers had experts in a pass."""

    def __init__(self) -> None:
        self.layers = 0

    def routing(self, layer: int, expert_ids: torch.Tensor) -> None:
        self.layers += 1


@dataclass(frozen=True, kw_only=True)
class Worth(Objective):
    """The logarithm of the answers' probability, each by its worth; reports how many layers have experts."""

    trains = ("trunk",)
    scale: float = 1.0

    def observer(self, model: GlmMoeDsa) -> Observer:
        return Calm()

    def terms(self, activations: Activations, seen: Observer) -> Sequence[Term]:
        batch, head = activations.batch, activations.model.lm_head.weight
        logits = (activations.hidden @ head.t()).float()
        chosen = logits.log_softmax(-1).gather(1, batch.ahead(1)[:, None])[:, 0]
        worth = batch.extra["worth"][:, 1:].reshape(-1)
        count = activations.whole.count()
        return [
            Term(name="worth_loss", value=-(worth * chosen).sum() / count, weight=self.scale),
            Term(name="asked", value=worth.sum() / count, weight=None),
        ]

    def tally(self, seen: Observer) -> Tally:
        assert isinstance(seen, Calm)
        return {"layers": torch.tensor(seen.layers), "passes": torch.tensor(1)}

    def finish(self, model: GlmMoeDsa, tally: Tally) -> dict[str, float]:
        return {"expert_layers": float(tally["layers"] / tally["passes"])}


@pytest.fixture
def sums() -> Iterator[None]:
    """The source by its name, for one test."""
    register("sums", Sums)
    yield
    del registry._SOURCES["sums"]


def _recipe(make_recipe: MakeRecipe, **changes: Any) -> Recipe:
    mixture = {"text": 0.5, "sums": Draw(weight=0.5, settings={"largest": 50})}
    stage = pretrain(**SHAPE, micro_tokens=2 * LENGTH, mixture=mixture, objectives=(Worth(scale=0.5), NextToken()))
    return make_recipe(stages=(replace(stage, **changes),))


def _trainer(recipe: Recipe, folder: Path, workers: int = 1) -> Trainer:
    return Trainer(recipe, folder, prepare(recipe, folder / "data"), workers=workers)


@pytest.mark.usefixtures("sums")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_made_up_source_and_objective_train_and_resume(workers: int, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = _recipe(make_recipe)
    whole = _trainer(recipe, tmp_path / "whole", workers)
    before = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    expected = [whole.advance() for _ in range(3)]
    assert all(metrics.keys() >= {"worth_loss", "asked", "expert_layers", "loss", "grad_norm"} for metrics in expected)
    assert all(metrics["expert_layers"] == 3 and metrics["asked"] > 0 for metrics in expected)
    for _ in range(3):
        trainer = _trainer(recipe, tmp_path / "cut", workers)
        assert trainer.advance() == expected[trainer.step - 1]
        trainer.save()
    state = trainer.model.state_dict()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(state[name], tensor), name
        if part_of(name) != "trunk":
            assert torch.equal(tensor, before[name]), f"{name} is moved by no objective of the stage"
    assert not torch.equal(state["lm_head.weight"], before["lm_head.weight"])


@pytest.mark.usefixtures("sums")
def test_they_stand_in_the_record_and_in_the_progress(make_recipe: MakeRecipe, tmp_path: Path, capsys: Any) -> None:
    folder = run(_recipe(make_recipe), tmp_path)
    assert folder is not None
    (stage,) = _trainer(_recipe(make_recipe), tmp_path).history.record()["stages"]
    assert stage["objectives"] == {"Worth": {"scale": 0.5}, "NextToken": {"weight": 1.0}}
    assert stage["mixture"] == {"text": 0.5, "sums": {"weight": 0.5, "settings": {"largest": 50}}}
    assert "worth_loss" in capsys.readouterr().err


@pytest.mark.usefixtures("sums")
def test_a_changed_objective_of_a_stage_that_has_begun_is_named(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    trainer = _trainer(_recipe(make_recipe), tmp_path)
    trainer.advance()
    trainer.save()
    changed = _recipe(make_recipe, objectives=(Worth(scale=2.0), NextToken()))
    with pytest.raises(ValueError, match=r"objectives\.Worth\.scale was 0\.5, is now 2\.0"):
        _trainer(changed, tmp_path)
    with pytest.raises(ValueError, match=r"objectives\.Worth\.scale was 0\.5, is now None"):
        _trainer(_recipe(make_recipe, objectives=(NextToken(),)), tmp_path)


def test_what_the_documentation_shows_trains(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    code = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8").split("```python\n")[2].split("```")[0]
    shown: dict[str, Any] = {"__name__": "shown"}
    exec(compile(code, "finetune.md", "exec"), shown)
    try:
        objectives = (NextToken(), shown["SmallLogits"](), Balance())
        stage = pretrain(**SHAPE, mixture=shown["mixture"] | {"text": 0.1}, objectives=objectives)
        metrics = _trainer(make_recipe(stages=(stage,)), tmp_path).advance()
    finally:
        del registry._SOURCES["squares"]
    assert metrics["size_loss"] > 0


# The registry of sources


def test_mixtures_know_registered_names_only(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ValueError, match=r"the mixture .*'sums'.*expected weights of \('text', 'renamed', "):
        _recipe(make_recipe)


@pytest.mark.usefixtures("sums")
def test_a_name_belongs_to_one_module(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_names()[-1] == "sums"
    register("sums", Sums)  # the same file, run again

    class Other(Sums):
        pass

    monkeypatch.setattr(Other, "__module__", "elsewhere")
    with pytest.raises(ValueError, match=r"a source named 'sums' is registered by .*test_open_parts; choose another"):
        register("sums", Other)


@pytest.mark.usefixtures("sums")
def test_settings_that_a_source_does_not_take_are_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    for settings, message in (
        ({"smallest": 1}, r"source 'sums' with the settings \{'smallest': 1\}: .*unexpected keyword argument"),
        ({"material": 1}, "source 'sums' with the settings"),
    ):
        recipe = _recipe(make_recipe, mixture={"sums": Draw(weight=1.0, settings=settings)})
        with pytest.raises(ValueError, match=message):
            prepare(recipe, tmp_path)
    with pytest.raises(ValueError, match="source 'text' with the settings"):
        prepare(_recipe(make_recipe, mixture={"text": Draw(weight=1.0, settings={"largest": 1})}), tmp_path)
    with pytest.raises(ValueError, match=r"no source is named 'nothing'; registered are \('text'"):
        make_source("nothing", 1.0, None, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Draw: weight is '1'; expected a number"):
        Draw(weight="1")  # type: ignore[arg-type]


# Masks


def _model(config: ModelConfig) -> GlmMoeDsa:
    """In float64, so that sums in another order agree closely."""
    return GlmMoeDsa(config).initialise(1).double().train()


def _update(model: GlmMoeDsa, stage: Stage, batch: Batch, rows: int = ROWS) -> tuple[dict[str, float], Any]:
    model.zero_grad(set_to_none=True)
    optimizer = MixedOptimizer(model, model.config, OptimConfig())
    metrics = train_batch(model, optimizer, replace(stage, micro_tokens=rows * LENGTH), batch, 0)
    return metrics, {name: p.grad for name, p in model.named_parameters()}


@pytest.fixture
def masked(model_config: ModelConfig) -> Batch:
    """Rows with many, few and no targets."""
    mask = torch.rand(ROWS, LENGTH + 1) < torch.tensor([0.9, 0.5, 0.2, 0.0])[:, None]
    return Batch(tokens=torch.randint(model_config.vocab_size, (ROWS, LENGTH + 1)), mask=mask)


def test_losses_are_means_over_the_targets_however_the_batch_is_cut(masked: Batch, model_config: ModelConfig) -> None:
    model, stage = _model(model_config), pretrain(**SHAPE).learning(Draft(steps=2), Balance(rate=0.0))
    whole, grads = _update(model, stage, masked)
    for rows in (1, 3):
        metrics, others = _update(model, stage, masked, rows)
        for key, value in whole.items():
            assert metrics[key] == pytest.approx(value, rel=TOL["micro-batches", "loss"].rtol), key
        for name, grad in grads.items():
            if grad is not None:
                torch.testing.assert_close(others[name], grad, **TOL["micro-batches", "float32"].bounds)
    plain = Batch(tokens=masked.tokens)
    assert _update(model, stage, plain)[0]["loss"] != pytest.approx(whole["loss"], rel=1e-3)


def test_a_mask_leaves_out_exactly_its_tokens(masked: Batch, model_config: ModelConfig) -> None:
    model = _model(model_config)
    seen: list[torch.Tensor] = []

    class Watched(NextToken):
        def terms(self, activations: Activations, observer: Observer) -> Sequence[Term]:
            seen.append(activations.hidden.detach())
            return super().terms(activations, observer)

    metrics, _ = _update(model, pretrain(**SHAPE, objectives=(Watched(), Balance(rate=0.0))), masked)
    hidden, head = seen[0], model.lm_head.weight.detach()
    expected = next_token_loss_reference(hidden, head, masked.targets())
    assert metrics["loss"] == pytest.approx(float(expected), rel=TOL["micro-batches", "loss"].rtol)
    losses = token_losses(hidden, head, masked.ahead(1))[masked.targets() != IGNORE]
    assert metrics["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


# What an update refuses, and what it adds up


@dataclass(frozen=True, kw_only=True)
class Silent(Objective):
    """Never says anything."""

    trains = ("trunk",)


def test_an_update_without_a_loss_is_refused(masked: Batch, model_config: ModelConfig) -> None:
    model = _model(model_config)
    stage = pretrain(**SHAPE, name="quiet", objectives=(Silent(), Draft(after=1.0)))
    with pytest.raises(ValueError, match=r"stage 'quiet' has nothing to learn from in update 1: none of its obj"):
        _update(model, stage, masked)


def test_terms_need_names_of_their_own(masked: Batch, model_config: ModelConfig) -> None:
    class Again(NextToken):
        pass

    stage = pretrain(**SHAPE, name="twice", objectives=(NextToken(), Again()))
    with pytest.raises(ValueError, match=r"stage 'twice' give terms \['loss', 'loss'\]; expected names of their own"):
        _update(_model(model_config), stage, masked)


def test_contributions_add_up_in_one_place(model_config: ModelConfig) -> None:
    model = GlmMoeDsa(model_config).initialise(0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in ("lm_head.weight", "norm.weight"))
    optimizer = MixedOptimizer(model, model_config, OptimConfig())
    gradients = Gradients(optimizer)
    reached = gradients.gradients(2.0 * model.lm_head.weight.sum())
    assert [grad is None for grad in reached] == [p is model.norm.weight for p in optimizer.parameters]
    for value in (1.0, 2.0):
        tallies = [{}, {"loads": torch.tensor([value, 1.0])}]
        gradients.add(Contribution(gradients=reached, metrics={"loss": value}, tallies=tallies))
    metrics, sums = gradients.finish()
    assert metrics == {"loss": 3.0} and sums[0] == {} and sums[1]["loads"].tolist() == [3.0, 2.0]
    assert bool((model.lm_head.weight.grad == 4.0).all()) and model.norm.weight.grad is None
