"""Rollouts on the engine and the updates they lead to: the same log-probabilities, versions, parts that stand still,
and a run that goes on as if it had never stopped."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from indexshare.cli import main
from indexshare.rl.batch import as_batch, per_token
from indexshare.rl.files import read_trajectories
from indexshare.rl.losses import token_logprobs
from indexshare.rl.recipe import Recipe, load_recipe
from indexshare.rl.trainer import Trainer
from indexshare.rl.trajectory import Segment
from tests.tolerance import TOL

Make = Callable[..., Recipe]
ROOT = Path(__file__).resolve().parents[3]


def start(recipe: Recipe, folder: Path) -> Trainer:
    """A run behind its demonstrations, whatever they have taught."""
    trainer = Trainer(recipe, folder)
    trainer.warm = True
    trainer._enter()
    return trainer


def trainer_logprobs(trainer: Trainer, segments: list[Segment]) -> np.ndarray:
    policy, batch = trainer.llm.model, as_batch(segments)
    found = per_token(policy, batch, lambda h, t: token_logprobs(h, policy.lm_head.weight, t), micro_rows=2)
    return found.numpy()


def test_engine_and_trainer_agree_beyond_the_selection(make_recipe: Make, tmp_path: Path) -> None:
    trainer = start(make_recipe(), tmp_path)
    made = trainer.roll_out()
    segments = [segment for each in made for segment in each.segments]
    assert trainer.policy.config.index_topk < 13 and max(len(segment) for segment in segments) > 13
    for row, segment in zip(trainer_logprobs(trainer, segments), segments, strict=True):
        away = np.abs(row[: len(segment)] - segment.logprobs)[segment.mask]
        assert away.max() < TOL["engine logprobs", "float32"].atol
        assert segment.sources[segment.mask].tolist() == [2] * segment.trained


def test_rollouts_do_not_depend_on_what_runs_beside_them(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe()
    many = start(recipe, tmp_path / "a").roll_out()
    few = start(replace(recipe, batch=1), tmp_path / "b")
    alone = [few.rollouts.collect(1)[0] for _ in range(4)]
    for a, b in zip(many, alone, strict=True):
        assert a.name == b.name and a.segments[0].tokens.tolist() == b.segments[0].tokens.tolist()


def test_the_gap_is_measured_and_is_rounding(make_recipe: Make, tmp_path: Path) -> None:
    trainer = start(make_recipe(value_steps=0), tmp_path)
    for _ in range(2):
        metrics = trainer.advance()
        assert metrics["logprob_gap"] < TOL["engine logprobs", "float32"].atol and metrics["fresh_tokens"] == 1.0
        assert metrics["kept"] == pytest.approx(1.0) and metrics["staleness"] == 0.0
    # a trainer whose weights have moved on without saying so is seen at once
    with torch.no_grad():
        trainer.policy.lm_head.weight.mul_(1.5)
    assert trainer.advance()["logprob_gap"] > 1e-3


def test_what_stands_still_and_what_moves(make_recipe: Make, tmp_path: Path) -> None:
    trainer = start(make_recipe(value_steps=0, random_reward=True), tmp_path)
    before = {name: tensor.clone() for name, tensor in trainer.policy.state_dict().items()}
    trainer.advance()
    moved = {name for name, tensor in trainer.policy.state_dict().items() if not torch.equal(tensor, before[name])}
    still = set(before) - moved
    assert any("mlp" in name for name in moved) and "embed_tokens.weight" in moved
    assert all(name in still for name in before if "indexer" in name or name.startswith("mtp.") or "bias" in name)
    own = trainer.policy.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in trainer.llm.model.state_dict().items())


def test_indexers_learn_where_they_are_asked_to(make_recipe: Make, tmp_path: Path) -> None:
    trainer = start(make_recipe(value_steps=0, indexer=True), tmp_path)
    name = next(n for n, _ in trainer.policy.named_parameters() if "indexer" in n and not n.startswith("mtp."))
    before = trainer.policy.state_dict()[name].clone()
    assert trainer.advance()["indexer_loss"] > 0
    assert not torch.equal(before, trainer.policy.state_dict()[name])


def test_value_steps_leave_the_policy_alone(make_recipe: Make, tmp_path: Path) -> None:
    trainer = start(make_recipe(random_reward=True), tmp_path)
    before = trainer.policy.embed_tokens.weight.clone()
    head = trainer.learner.critic.value_head.weight.clone() if trainer.learner.critic else None
    metrics = trainer.advance()
    assert "policy_loss" not in metrics and torch.equal(before, trainer.policy.embed_tokens.weight)
    assert trainer.learner.critic is not None and not torch.equal(head, trainer.learner.critic.value_head.weight)
    assert trainer.version == 0 and trainer.phase == "policy"


def test_the_critic_may_train_its_feed_forward_layers_alone(make_recipe: Make, tmp_path: Path) -> None:
    trainer = start(make_recipe(critic_trains="ffn"), tmp_path)
    assert trainer.learner.critic is not None
    trained = {name for name, p in trainer.learner.critic.named_parameters() if p.requires_grad}
    assert trained and all(".mlp." in name or name.startswith("value_head") for name in trained)


def test_grpo_needs_no_critic(make_recipe: Make, tmp_path: Path) -> None:
    trainer = start(make_recipe(algorithm="grpo", group=2, random_reward=True), tmp_path)
    made = trainer.roll_out()
    assert [each.group for each in made] == ["problem-0", "problem-0", "problem-1", "problem-1"]
    assert made[0].segments[0].tokens[:13].tolist() == made[1].segments[0].tokens[:13].tolist()
    metrics, shown = trainer.learn(made)
    assert trainer.learner.critic is None and "value_loss" not in metrics and trainer.policy_steps == 1
    assert set(shown[0].segments[0].columns) == {"advantage", "value", "ratio"}


def test_rollouts_are_carried_over_updates(make_recipe: Make, tmp_path: Path) -> None:
    """Tokens of a rollout that outlives an update carry the versions, and the probabilities, of their own weights."""
    trainer = start(make_recipe(value_steps=0, in_flight=8, random_reward=True, optim=adam_fast()), tmp_path)
    rollouts = trainer.rollouts
    for _ in range(4):
        if len(rollouts._running) < 8:
            rollouts._start()
        rollouts._advance()
    old = {name: tensor.clone() for name, tensor in trainer.policy.state_dict().items()}
    trainer.rollouts.pause()
    with torch.no_grad():
        for parameter in trainer.policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    trainer.version = 1
    trainer._publish()
    assert rollouts.counts.carried == len(rollouts._running) > 0
    made = rollouts.collect(4)
    mixed = [segment for each in made for segment in each.segments if len(set(segment.versions[segment.mask])) == 2]
    assert mixed and made[0].staleness(1) == 1
    now = trainer_logprobs(trainer, mixed)
    trainer.llm.model.load_state_dict(old)
    then = trainer_logprobs(trainer, mixed)
    for new, before, segment in zip(now, then, mixed, strict=True):
        for row, version in ((before, 0), (new, 1)):
            rows = segment.mask & (segment.versions == version)
            np.testing.assert_allclose(row[: len(segment)][rows], segment.logprobs[rows], atol=1e-4)
            assert np.abs((new - before)[: len(segment)][rows]).max() > 1e-3


def adam_fast() -> Any:
    from indexshare.rl.recipe import adam

    return adam(1e-2)


def test_what_is_too_old_is_dropped_and_counted(make_recipe: Make, tmp_path: Path) -> None:
    trainer = start(make_recipe(value_steps=0, in_flight=12, most_stale=0, steps=3), tmp_path)
    trainer.advance()
    metrics = trainer.advance()
    assert metrics["dropped"] > 0 and metrics["carried"] > 0
    assert trainer.rollouts.counts.dropped["stale"] == metrics["dropped"]


@pytest.mark.parametrize("phase", ["warmup", "policy"])
def test_a_resumed_run_makes_the_same_update(make_recipe: Make, tmp_path: Path, phase: str) -> None:
    recipe = make_recipe(random_reward=True, steps=3)
    trainer = Trainer(recipe, tmp_path) if phase == "warmup" else start(recipe, tmp_path)
    trainer.advance() if phase == "warmup" else (trainer.advance(), trainer.advance())
    trainer.save()
    again = Trainer(recipe, tmp_path)
    assert (again.phase, again.step, again.version) == (trainer.phase, trainer.step, trainer.version)
    if phase == "warmup":
        trainer.recipe = again.recipe = replace(recipe, warmup=replace(recipe.warmup, every=9, steps=9))  # type: ignore[type-var]
    a, b = trainer.advance(), again.advance()
    assert a == b
    for name, tensor in trainer.policy.state_dict().items():
        assert torch.equal(tensor, again.policy.state_dict()[name]), name


def test_what_was_begun_is_made_again_and_nothing_twice(make_recipe: Make, tmp_path: Path) -> None:
    recipe = make_recipe(value_steps=0, in_flight=10, steps=9, most_stale=9)
    trainer, trained = start(recipe, tmp_path), list[str]()
    for _ in range(3):
        made = trainer.roll_out()
        trained += [each.name for each in made]
        trainer.learn(made)
    owed = trainer.rollouts.owed
    assert owed
    trainer.save()
    again = Trainer(recipe, tmp_path)
    for _ in range(4):
        trained += [each.name for each in again.roll_out()]
    assert len(set(trained)) == len(trained), "none twice"
    assert {f"train-{number}" for number in owed} <= set(trained), "none lost"


def test_between_publications_the_gap_is_not_rounding_and_not_called_so(make_recipe: Make, tmp_path: Path) -> None:
    trainer = start(make_recipe(value_steps=0, publish_every=2, random_reward=True, steps=3), tmp_path)
    first, second, third = (trainer.advance() for _ in range(3))
    assert first["fresh_tokens"] == third["fresh_tokens"] == 1.0 and trainer.version == 1
    assert second["fresh_tokens"] == 0.0 and second["approximate_kl"] > 0
    assert max(first["logprob_gap"], third["logprob_gap"]) < TOL["engine logprobs", "float32"].atol


def test_a_checkpoint_of_other_settings_is_refused(make_recipe: Make, tmp_path: Path) -> None:
    start(make_recipe(), tmp_path).save()
    with pytest.raises(ValueError, match="was made with batch 4, the recipe has 8"):
        Trainer(make_recipe(batch=8), tmp_path)


def test_a_warmup_that_teaches_nothing_says_so(make_recipe: Make, tmp_path: Path) -> None:
    trainer = Trainer(make_recipe(), tmp_path)
    trainer.advance()
    with pytest.raises(ValueError, match="succeed as they are sampled"):
        trainer.advance()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"algorithm": "grpo"}, "whole groups"),
        ({"batch": 4, "group": 3}, "whole groups"),
        ({"warmup": None}, "either a warmup or a model"),
        ({"context": 65}, "context is 65"),
        ({"most_stale": -1}, "most_stale is -1"),
        ({"algorithm": "reinforce"}, "algorithm is 'reinforce'"),
    ],
)
def test_recipes_that_cannot_work_are_refused(make_recipe: Make, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_recipe(**changes)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("rl_*.py")), ids=lambda p: p.stem)
def test_recipes_load(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name.replace("-", "_") == path.stem and recipe.record() == load_recipe(path).record()


RECIPE = """
from indexshare.config.presets import preset
from indexshare.rl.environment import byte_tokenizer
from indexshare.rl.recipe import Recipe, Warmup, adam
from indexshare.rl.tasks import Sorting

def recipe():
    tokenizer = byte_tokenizer()
    model = preset("tiny").replace(vocab_size=tokenizer.vocab_size, initializer_range=0.05, dtype="float32")
    return Recipe(name="one", model=model, task=Sorting(tokenizer, 2, "abcd"), context=16, steps=2, batch=4,
                  value_steps=1, evaluate_problems=16,
                  warmup=Warmup(steps=100, rows=16, every=10, until=0.05, optim=adam(1e-2)))
"""


def test_the_command_runs_debugs_and_replays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: object) -> tuple[int, str]:
        code = main(["rl", *(str(word) for word in words)])
        return code, capsys.readouterr().out

    file, out = tmp_path / "rl_one.py", tmp_path / "run"
    file.write_text(RECIPE)
    assert run(file, "--out", out, "--replay", tmp_path / "none")[0] == 2
    assert run(file, "--out", out, "--quiet") == (0, f"{out / 'model'}\n")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"warmup", "value", "policy"}
    assert [row for row in rows if "greedy" in row][-1]["sampled"] >= 0.0
    (kept,) = (out / "rollouts").iterdir()
    trajectories, texts = read_trajectories(kept)
    assert len(trajectories) == 4 and set(texts.values()) & set("ab>")
    assert {"advantage", "value", "ratio"} <= set(trajectories[0].segments[0].columns)
    code, text = run(file, "--out", out, "--replay", kept)
    assert code == 0 and "policy_loss" in json.loads(text)["metrics"]
    code, text = run(file, "--out", out, "--debug-rollout-only")
    assert code == 0 and len(read_trajectories(text.strip())[0]) == 4
    assert run(file, "--out", out, "--quiet")[0] == 0  # finished before
    assert run(file, "--out", out, "--debug-rollout-only", "--replay", kept)[0] == 2
    assert run("view", kept, "--out", tmp_path / "page.html")[0] == 0
    (tmp_path / "other.py").write_text("def recipe():\n    return 3\n")
    assert run(tmp_path / "other.py", "--out", out)[0] == 2
