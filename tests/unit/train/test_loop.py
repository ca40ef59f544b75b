"""The loop: all stages, clean stops, exact resumes, and errors that lose nothing."""

import errno
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indexshare import load_model
from indexshare.data.corpus import TextFolder
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer
from indexshare.train import checkpoint
from indexshare.train import trainer as training
from indexshare.train.checkpoint import DAMAGED, NAME, PREVIOUS, load_checkpoint, save_checkpoint
from indexshare.train.loop import run
from indexshare.train.objectives import Balance, Draft
from indexshare.train.optim import MixedOptimizer, is_indexer
from indexshare.train.progress import MetricsFile, Reporter, duration
from indexshare.train.recipe import Recipe, prepare
from indexshare.train.record import export
from indexshare.train.stages import pretrain
from indexshare.train.trainer import Trainer
from tests.unit.train.conftest import write_sources

MakeRecipe = Callable[..., Recipe]
STEPS = 8  # of the whole toy recipe, two per stage


@pytest.fixture(autouse=True)
def _handlers_stay() -> Iterator[None]:
    """A run leaves the signal handlers as it found them."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    after = [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    assert after == before


def metrics(folder: Path) -> list[dict[str, Any]]:
    """All records but their speeds, which are never the same twice."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines]


def train(recipe: Recipe, folder: Path, **settings: Any) -> Path | None:
    return run(recipe, folder, **({"quiet": True} | settings))


def trainer_of(recipe: Recipe, folder: Path) -> Trainer:
    return Trainer(recipe, folder, prepare(recipe, folder / "data"))


def test_a_kept_stage_is_where_another_recipe_starts(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    first = make_recipe(keep=("sparse",))
    train(first, tmp_path / "a")
    kept = tmp_path / "a" / "stages" / "sparse"
    assert not (tmp_path / "a" / "stages" / "pretrain").exists()
    record = json.loads((kept / "training.json").read_text())
    assert [stage["name"] for stage in record["stages"]] == ["pretrain", "indexer_warmup", "sparse"]
    assert record["steps"] == 6 and record["start"] is None
    model = load_model(kept)
    assert model.config.share_plan.pattern == "FFFF"
    second = make_recipe(name="twin", stages=first.stages[3:], start=str(kept))
    trainer = trainer_of(second, tmp_path / "b")
    weights = trainer.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items() if name in weights)
    assert (tmp_path / "b" / "data" / "tokenizer.json").read_bytes() == (kept / "tokenizer.json").read_bytes()
    folder = train(second, tmp_path / "b")
    assert folder is not None
    grown = json.loads((folder / "training.json").read_text())
    assert grown["start"] == str(kept) and grown["ancestor"] == record and record["ancestor"] is None
    elsewhere = make_recipe(name="twin", stages=first.stages[3:], start=str(tmp_path / "moved"))
    kept.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"is finished.*the run began from .*sparse; that the recipe now starts from"):
        train(elsewhere, tmp_path / "b")
    (tmp_path / "moved").rename(kept)
    nowhere = make_recipe(start=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="where there is no model; run the recipe that makes it first"):
        train(nowhere, tmp_path / "c")
    other = make_recipe(start=str(kept), model=first.model.replace(hidden_size=64))
    with pytest.raises(ValueError, match="are of another model"):
        train(other, tmp_path / "d")


def test_a_twin_takes_the_batches_that_the_first_run_took(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    first = make_recipe(keep=("sparse",))
    train(first, tmp_path / "a")
    start = str(tmp_path / "a" / "stages" / "sparse")
    twin = make_recipe(name="twin", stages=first.stages[3:], start=start, stages_before=3)
    train(twin, tmp_path / "b")
    after = [{k: v for k, v in record.items() if k not in ("step", "tokens")} for record in metrics(tmp_path / "b")]
    last = [record for record in metrics(tmp_path / "a") if record["stage"] == first.stages[3].name]
    assert after and after == [{k: v for k, v in record.items() if k not in ("step", "tokens")} for record in last]


def test_a_start_with_shared_layers_gets_indexers_for_all(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    first = make_recipe()
    folder = train(first, tmp_path / "a")
    assert folder is not None
    start = load_model(folder)
    plan = start.config.share_plan
    assert plan.shared_layers
    trainer = trainer_of(make_recipe(name="again", stages=first.stages, start=str(folder)), tmp_path / "b")
    weights = trainer.model.state_dict()
    assert trainer.model.config.share_plan.shared_layers == ()
    for layer in range(plan.num_layers):
        for name, tensor in start.layers[plan.source(layer)].self_attn.indexer.state_dict().items():
            assert torch.equal(weights[f"layers.{layer}.self_attn.indexer.{name}"], tensor)


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Do something right after the metrics of a step are written."""
    record = Reporter.record

    def watched(self: Reporter, values: dict[str, Any]) -> None:
        record(self, values)
        if values["step"] == step and "loss" in values:
            action()

    monkeypatch.setattr(Reporter, "record", watched)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_four_stages_make_a_model(dtype: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(dtype=dtype)
    folder = train(recipe, tmp_path)
    assert folder == tmp_path / "model"
    records = metrics(tmp_path)
    steps = [r for r in records if "loss" in r]
    names = ["pretrain", "indexer_warmup", "sparse", "index_share"]
    assert [(r["step"], r["stage"]) for r in steps] == [(i + 1, names[i // 2]) for i in range(STEPS)]
    assert [r["tokens"] for r in steps] == [128 * (i + 1) for i in range(STEPS)]
    assert ["draft_loss" in r for r in steps] == [False, True, False, False, True, True, True, True]
    assert ["indexer_loss" in r for r in steps] == [False, False] + [True] * 6
    bits = [r for r in records if "held_out_bits_per_byte" in r]
    assert [(r["step"], r["stage"]) for r in bits] == [(2 * i + 2, names[i]) for i in range(4)]
    assert all(0 < r["held_out_bits_per_byte"] < 100 for r in bits)

    model = load_model(folder)
    assert model.plan == recipe.model.share_plan
    assert model.embed_tokens.weight.dtype == getattr(torch, dtype)
    assert Tokenizer.load(folder).vocab_size <= recipe.model.vocab_size
    record = json.loads((folder / "training.json").read_text())
    assert (record["recipe"], record["steps"], record["tokens"], len(record["stages"])) == ("toy", STEPS, 1024, 4)
    assert record["data"]["train_files"] + record["data"]["held_out_files"] == 24


def test_a_run_trains_in_the_type_of_the_machine_it_began_on(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Emulated bfloat16 is avoided; going on elsewhere changes nothing; the model is written in bfloat16."""
    recipe = make_recipe(dtype="auto")
    for begun, other in (("float32", "bfloat16"), ("bfloat16", "float32")):
        monkeypatch.setattr(training, "fast_dtype", lambda device, begun=begun: begun)
        trainer = trainer_of(recipe, tmp_path / begun)
        trainer.advance()
        trainer.save()
        monkeypatch.setattr(training, "fast_dtype", lambda device, other=other: other)
        again = trainer_of(recipe, tmp_path / begun)
        assert again.dtype == trainer.dtype == begun
        assert again.model.embed_tokens.weight.dtype == getattr(torch, begun)
        record = json.loads((export(again, tmp_path / begun / "model") / "training.json").read_text())
        assert record["dtype"] == begun
        assert load_model(tmp_path / begun / "model").embed_tokens.weight.dtype == torch.bfloat16


def test_layers_join_later_with_initial_weights(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    first, *rest = make_recipe().stages
    short = replace(first, name="pretrain_short", layers=2).without(Draft)
    still = replace(first, optim=replace(first.optim, muon_lr=0.0, adam_lr=0.0, router_lr=0.0)).learning(
        Balance(rate=0.0)
    )
    recipe = make_recipe(stages=(short, still, *rest))
    trainer = trainer_of(recipe, tmp_path)
    assert trainer.model.config.num_hidden_layers == len(trainer.model.layers) == 2
    advance_to(trainer, 2)
    before = trainer.model.state_dict()
    trainer.evaluate()
    trainer.save()
    advance_to(trainer, 3)  # at rates of zero nothing changes
    after, initial = trainer.model.state_dict(), GlmMoeDsa(trainer.model.config).initialise(recipe.seed)
    assert trainer.model.config.num_hidden_layers == 4
    for name, tensor in initial.state_dict().items():
        if not is_indexer(name):
            expected = before[name] if name in before else tensor.to(after[name].dtype)
            assert torch.equal(after[name], expected), name
    again = trainer_of(recipe, tmp_path)
    assert again.step == 2 and len(again.model.layers) == 2
    advance_to(again, 3)
    assert all(torch.equal(tensor, again.model.state_dict()[name]) for name, tensor in after.items())
    with pytest.raises(ValueError, match="layers"):
        trainer_of(make_recipe(stages=(replace(short, layers=3), still, *rest)), tmp_path)


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((2, 2, 1, None), "1 layers, fewer than the 2 trained before it"),
        ((5, None, None, None), "has 5 layers, the model 4"),
        ((2, None, None, None), "does not train the trunk, but layers 2 to 3 have not been trained"),
    ],
)
def test_layers_that_cannot_be(layers: tuple[int | None, ...], text: str, make_recipe: MakeRecipe) -> None:
    stages = make_recipe().stages
    with pytest.raises(ValueError, match=text):
        make_recipe(stages=tuple(replace(s, layers=n) if n else s for s, n in zip(stages, layers, strict=True)))


@pytest.mark.parametrize("layers", [0, -1, 2.0, "2", True])
def test_layers_are_a_whole_number(layers: object) -> None:
    with pytest.raises(ValueError, match=r"stage 'pretrain': layers is .* expected a whole number of at least 1"):
        pretrain(tokens=64, sequence_length=32, batch_tokens=64, layers=layers)


def test_the_last_stage_has_all_layers(make_recipe: MakeRecipe) -> None:
    first, *_, last = make_recipe().stages
    with pytest.raises(ValueError, match="ends with 2 of 4"):
        make_recipe(stages=(replace(first, layers=2),))
    with pytest.raises(ValueError, match="sharing needs the whole trunk"):
        replace(last, layers=2)


def test_training_learns(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    stage = make_recipe().stages[0]
    longer = replace(stage, tokens=40 * 128, mixture={"text": 1.0}).without(Draft)
    train(make_recipe(stages=(longer,)), tmp_path)
    losses = [r["loss"] for r in metrics(tmp_path) if "loss" in r]
    assert losses[0] > math.log(200) and sum(losses[-5:]) / 5 < 0.5 * losses[0]


def advance_to(trainer: Trainer, step: int) -> None:
    while trainer.step < step:
        trainer.advance()


def test_warm_up_changes_indexers_only(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    trainer = trainer_of(make_recipe(), tmp_path)
    advance_to(trainer, 2)
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    advance_to(trainer, 4)
    assert trainer.stage.name == "indexer_warmup"
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]) != is_indexer(name), name


def test_entering_index_share_drops_surplus_indexers_and_nothing_else(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    trainer = trainer_of(make_recipe(), tmp_path)
    advance_to(trainer, 6)
    before = trainer.model.state_dict()
    assert any(name.startswith("layers.3.self_attn.indexer.") for name in before)
    trainer.stage_index += 1
    trainer._enter_stage(before)
    after = trainer.model.state_dict()
    dropped = before.keys() - after.keys()
    assert dropped == {name for name in before if name.startswith("layers.3.self_attn.indexer.")}
    assert all(torch.equal(after[name], before[name]) for name in after)
    assert trainer.model.plan.pattern == "FFFS"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_clean_and_says_how_to_go_on(
    number: int, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipe = make_recipe()
    train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), number))
        result = run(recipe, tmp_path / "cut", resume_command="`go on`")
    assert result is None
    assert "stopped at step 3, checkpoint written; resume with `go on`" in capsys.readouterr().err
    assert not (tmp_path / "cut" / "model").exists()
    assert run(recipe, tmp_path / "cut") == tmp_path / "cut" / "model"
    assert "resumed at step 3, stage indexer_warmup" in capsys.readouterr().err
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    for file in ("model.safetensors", "training.json"):
        assert (tmp_path / "cut/model" / file).read_bytes() == (tmp_path / "whole/model" / file).read_bytes()


def test_a_second_interrupt_does_not_wait(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: Any) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 3, twice)
    with pytest.raises(KeyboardInterrupt):
        train(make_recipe(), tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resume_is_exact_from_every_step(dtype: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(dtype=dtype)
    whole = trainer_of(recipe, tmp_path / "whole")
    expected = [whole.advance() for _ in range(STEPS)]
    for _ in range(STEPS):  # one step per life; most of them end inside a stage, some at its end
        trainer = trainer_of(recipe, tmp_path / "cut")
        assert trainer.advance() == expected[trainer.step - 1]
        trainer.save()
    state, wanted = trainer.model.state_dict(), whole.model.state_dict()
    assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in state)
    assert trainer.finished


def test_lines_after_the_last_checkpoint_do_not_appear_twice(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies at step 5 has its checkpoint at step 4, the end of a stage."""
    recipe = make_recipe()
    train(recipe, tmp_path / "whole")

    def die() -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        at_step(patch, 5, die)
        with pytest.raises(SystemExit):
            train(recipe, tmp_path / "cut")
    path = tmp_path / "cut" / "metrics.jsonl"
    assert metrics(tmp_path / "cut")[-1]["step"] == 5
    path.write_text(path.read_text() + '{"step": 6, "lo')  # and a line cut short
    train(recipe, tmp_path / "cut")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_a_finished_run_is_exported_again_and_not_changed(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    train(make_recipe(), tmp_path)
    before, written = metrics(tmp_path), (tmp_path / NAME).stat().st_mtime_ns
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "model" / "model.safetensors").unlink()
    assert train(make_recipe(), tmp_path) == tmp_path / "model"
    assert (metrics(tmp_path), (tmp_path / NAME).stat().st_mtime_ns) == (before, written)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights


# Losses that are not numbers


def _spoil_loss(patch: pytest.MonkeyPatch, step: int) -> None:
    real, count = training.train_batch, [0]

    def spoilt(*arguments: Any, **settings: Any) -> dict[str, float]:
        count[0] += 1
        return real(*arguments, **settings) | ({"loss": math.nan} if count[0] == step else {})

    patch.setattr(training, "train_batch", spoilt)


def _spoil_gradient(patch: pytest.MonkeyPatch, step: int) -> None:
    real, count = MixedOptimizer.clip, [0]

    def spoilt(self: MixedOptimizer) -> dict[str, float]:
        count[0] += 1
        if count[0] == step:
            next(m for _, m in self._pairs.values() if m.grad is not None).grad.fill_(math.inf)  # type: ignore[union-attr]
        return real(self)

    patch.setattr(MixedOptimizer, "clip", spoilt)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_spoil_loss, r"loss nan at step 6 \(update 2 of stage 'sparse'\); the last good checkpoint is kept in .*cut"),
        (_spoil_gradient, r"grad_norm (inf|nan) at step 6 \(update 2 of stage 'sparse'\)"),
    ],
)
def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(
    spoil: Callable[[pytest.MonkeyPatch, int], None],
    message: str,
    make_recipe: MakeRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = make_recipe()
    train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        spoil(patch, 6)
        with pytest.raises(FloatingPointError, match=message):
            train(recipe, tmp_path / "cut", checkpoint_minutes=1e-9)
    assert load_checkpoint(tmp_path / "cut")["position"]["step"] == 5  # type: ignore[index]
    assert train(recipe, tmp_path / "cut") is not None
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


def test_lower_rates_take_effect_on_resume(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    trainer = trainer_of(recipe, tmp_path)
    advance_to(trainer, 1)
    trainer.save()
    stage = recipe.stages[0]
    lower = replace(stage, optim=replace(stage.optim, adam_lr=0.0, muon_lr=1e-12, router_lr=0.0, weight_decay=0.0))
    resumed = trainer_of(replace(recipe, stages=(lower, *recipe.stages[1:])), tmp_path)
    before = resumed.model.embed_tokens.weight.detach().clone()
    advance_to(resumed, 2)
    assert torch.equal(resumed.model.embed_tokens.weight, before)


def test_the_first_update_fails_without_a_promise(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    with monkeypatch.context() as patch:
        _spoil_loss(patch, 1)
        with pytest.raises(FloatingPointError, match=r"no checkpoint had been written yet: lower the .* again"):
            train(recipe, tmp_path)
    assert not list(tmp_path.glob("checkpoint*"))
    trainer = trainer_of(recipe, tmp_path)
    advance_to(trainer, 1)
    trainer.save()
    with monkeypatch.context() as patch:
        _spoil_loss(patch, 1)
        with pytest.raises(FloatingPointError, match="of step 1: lower the learning rate and resume"):
            train(recipe, tmp_path)


# A full disk, damaged and foreign checkpoints


@pytest.mark.parametrize("kind", ["OSError", "RuntimeError"])
def test_a_full_disk_is_named_and_the_checkpoint_before_stays(
    kind: str, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch reports a failed write as the one or the other, depending on where it happens."""
    recipe = make_recipe()
    train(recipe, tmp_path / "whole")

    def full(state: Any, file: Any) -> None:
        file.write(b"half a file")
        if kind == "OSError":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise RuntimeError("PytorchStreamWriter failed writing file data/7")

    def fill_the_disk() -> None:
        monkeypatch.setattr(checkpoint.torch, "save", full)

    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        at_step(patch, 4, fill_the_disk)
        with pytest.raises(OSError, match=r"could not write a checkpoint .*free some space.*before it is intact"):
            train(recipe, folder)
    monkeypatch.undo()
    assert [p.name for p in folder.glob("checkpoint*")] == [NAME]
    assert load_checkpoint(folder)["position"]["step"] == 2  # type: ignore[index]
    assert train(recipe, folder) is not None
    assert metrics(folder) == metrics(tmp_path / "whole")


def test_the_first_checkpoint_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: Any, file: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="there is none before it"):
        save_checkpoint(tmp_path, {"step": 1})
    assert list(tmp_path.iterdir()) == []
    assert load_checkpoint(tmp_path) is None


def test_damaged_checkpoints_fall_back_to_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, {"step": step, "t": torch.ones(1000)})
    assert load_checkpoint(tmp_path) == {"step": 2, "t": pytest.approx(torch.ones(1000))}
    whole = (tmp_path / NAME).read_bytes()
    for damaged in (whole[:-200], b""):
        said: list[str] = []
        (tmp_path / NAME).write_bytes(damaged)
        assert load_checkpoint(tmp_path, said.append)["step"] == 1  # type: ignore[index]
        assert len(said) == 1 and f"put aside as {DAMAGED}, and the one before it is used" in said[0]
        assert (tmp_path / DAMAGED).read_bytes() == damaged
    assert not (tmp_path / NAME).exists()  # as if killed between the two renames
    assert load_checkpoint(tmp_path)["step"] == 1  # type: ignore[index]
    save_checkpoint(tmp_path, {"step": 3})
    (tmp_path / NAME).write_bytes(b"")
    assert load_checkpoint(tmp_path)["step"] == 1  # type: ignore[index]
    (tmp_path / PREVIOUS).write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"no checkpoint can be read .*delete them to start again"):
        load_checkpoint(tmp_path)


def test_folders_of_other_runs_are_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    folder = tmp_path / "run"
    trainer = trainer_of(recipe, folder)
    advance_to(trainer, 1)
    trainer.save()
    with pytest.raises(ValueError, match=r"is of recipe 'toy' on data .*this run is 'other'.*use another folder"):
        train(replace(recipe, name="other"), folder)
    first, *others = recipe.stages
    with pytest.raises(ValueError, match=r"stands in stage 'pretrain', the recipe has \['renamed'"):
        train(replace(recipe, stages=(replace(first, name="renamed"), *others)), folder)
    wider = replace(recipe, model=recipe.model.replace(intermediate_size=64))
    with pytest.raises(ValueError, match=r"of another model.*layers\.0\.mlp.*use another folder"):
        train(wider, folder)
    shallow = recipe.model.replace(num_nextn_predict_layers=0)
    without = tuple(stage.without(Draft) for stage in recipe.stages)
    with pytest.raises(ValueError, match=r"of another model.*mtp\."):
        train(replace(recipe, model=shallow, stages=without), folder)
    assert not (folder / "metrics.jsonl").exists()
    assert trainer_of(recipe, folder).step == 1  # nothing was spoilt by all that


def test_changed_text_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(8):
        (text / f"m{number}.py").write_text(f"x_{number} = {number}\n" * 60)
    recipe = make_recipe(text=TextFolder(path=str(text), held_out=0.3))
    folder = tmp_path / "run"
    trainer = trainer_of(recipe, folder)
    trainer.save()
    name = trainer.data.train.names[0]
    before = (text / name).read_text()
    (text / name).write_text(before + "y = 1\n")
    with pytest.raises(ValueError, match=r"on data .*use another folder"):
        train(recipe, folder)
    (text / name).write_text(before)
    assert trainer_of(recipe, folder).step == 0


def test_too_little_text_is_refused_at_the_start(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The last stage has the longest rows: hours of training must not end in this error."""
    recipe = make_recipe()
    long = pretrain(name="long", tokens=4096, sequence_length=4096, batch_tokens=4096)
    with pytest.raises(ValueError, match=r"too few for windows of 4097; use a shorter sequence length or more text"):
        train(replace(recipe, stages=(*recipe.stages[:3], long)), tmp_path)


def test_short_held_out_text_is_evaluated_in_short_windows(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """An even and an odd number of held-out tokens, neither enough for rows of the stage."""
    stage = pretrain(tokens=128, sequence_length=128, batch_tokens=128)
    trainer = trainer_of(make_recipe(stages=(stage,)), tmp_path)
    for tokens in (60, 61):
        corpus = trainer.data.held_out
        corpus.starts, corpus.names = np.asarray([0, tokens]), ["a.py"]
        corpus.__dict__.pop("groups", None)
        assert 0 < trainer.evaluate() < 100


# What a run tells


def test_metrics_files_are_cut_at_the_step(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.jsonl"
    first = MetricsFile(path, 0)
    for step in (1, 2, 2, 3):
        first.write({"step": step})
    first.close()
    path.write_text(path.read_text() + '{"step": 3, "x')
    again = MetricsFile(path, 2)
    again.write({"step": 3, "new": True})
    again.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1}, {"step": 2}, {"step": 2}, {"step": 3, "new": True},
    ]  # fmt: skip
    assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]


def test_progress_without_a_terminal_is_lines(make_recipe: MakeRecipe, tmp_path: Path, capsys: Any) -> None:
    run(make_recipe(), tmp_path)
    err = capsys.readouterr().err
    for part in ("toy: ", "tokens held out", "pretrain 1/2  loss ", "tokens/s", "left in stage", "bits per byte"):
        assert part in err
    assert "\x1b" not in err
    assert [duration(s) for s in (0, 59.6, 125, 3720, -1)] == ["0s", "1m00s", "2m05s", "1h02m", "0s"]


def test_files_that_are_left_out_are_said_and_recorded(make_recipe: MakeRecipe, tmp_path: Path, capsys: Any) -> None:
    text = write_sources(tmp_path / "text")
    (text / "latin.py").write_bytes(b"x = '\xe9'\n")
    (text / "empty.py").write_text("")
    recipe = make_recipe(text=TextFolder(path=str(text), held_out=0.2), stages=make_recipe().stages[:1])
    folder = run(recipe, tmp_path / "run")
    assert folder is not None
    err = capsys.readouterr().err
    assert "1 file left out: 1 not UTF-8 (latin.py)" in err and "empty.py" not in err
    record = json.loads((folder / "training.json").read_text())
    assert record["data"]["files_left_out"] == {"not UTF-8": 1, "empty": 1}


def test_two_trainings_in_one_folder(make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is refused before it reads anything, and the first ends as it would have alone."""
    recipe = make_recipe()
    refused = []

    def second() -> None:
        with pytest.raises(ValueError, match=r"run is being written by process \d+, this one") as error:
            train(recipe, tmp_path / "run")
        refused.append(error)

    with monkeypatch.context() as patch:
        at_step(patch, 3, second)
        assert train(recipe, tmp_path / "run") is not None
    assert len(refused) == 1
    train(recipe, tmp_path / "alone")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "alone")


def test_tensorboard_on_request(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"install `indexshare\[tensorboard\]`"):
            train(make_recipe(), tmp_path, tensorboard=True)
        return
    train(make_recipe(stages=make_recipe().stages[:1]), tmp_path, tensorboard=True)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_compute_threads_are_put_back(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    train(make_recipe(stages=make_recipe().stages[:1]), tmp_path, workers=3)
    assert torch.get_num_threads() == before


def test_evaluation_leaves_the_run_as_it_is(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    plain, looked = trainer_of(recipe, tmp_path / "a"), trainer_of(recipe, tmp_path / "b")
    for _ in range(3):
        bits = looked.evaluate()
        assert looked.evaluate() == bits
        assert plain.advance() == looked.advance()
    assert isinstance(looked.model, GlmMoeDsa) and looked.model.training
