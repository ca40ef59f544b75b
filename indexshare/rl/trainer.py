"""The state of a run of reinforcement learning, one update at a time: demonstrations, the critic alone, then both."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from indexshare.checkpoint.load import load_model
from indexshare.config.shipped import model_directory
from indexshare.engine.llm import LLM
from indexshare.model.glm import GlmMoeDsa
from indexshare.rl.critic import Critic
from indexshare.rl.episode import Episode
from indexshare.rl.learner import Learner, train_parts
from indexshare.rl.measure import success
from indexshare.rl.recipe import Recipe
from indexshare.rl.rollout import Rollouts
from indexshare.rl.trajectory import NOT_SAMPLED, Trajectory
from indexshare.rl.warmup import demonstrate
from indexshare.train.checkpoint import load_checkpoint, save_checkpoint
from indexshare.train.optim import MixedOptimizer
from indexshare.train.workers import Workers

Phase = Literal["warmup", "value", "policy"]


class Trainer:
    """A run.

    The rollouts' engine has weights of its own, which are replaced when the policy's are published. So a rollout never
    sees weights between two versions.

    Args:
        recipe: the run.
        directory: where its checkpoints are.
        workers: passes of an update side by side.
    """

    def __init__(self, recipe: Recipe, directory: Path, workers: int = 1) -> None:
        self.recipe, self.directory = recipe, directory
        self._workers = Workers(workers)
        self.step = 0  # updates in all phases
        self.warm_steps, self.value_steps, self.policy_steps = 0, 0, 0
        self.version, self.rollouts_made = 0, 0
        self._owed: list[int] = []  # rollouts that the run before had begun
        self.warm = recipe.warmup is None
        self.notes: list[str] = []
        torch.manual_seed(recipe.seed)
        saved = load_checkpoint(directory, self.notes.append)
        self.policy = self._first_policy() if saved is None else GlmMoeDsa(recipe.model)
        self.llm = LLM(
            copy.deepcopy(self.policy).eval(), max_context=recipe.limits.context, max_batch=self._in_flight,
            cache_tokens=self._in_flight * (recipe.limits.context + 64), tokenizer=recipe.task.tokenizer,
        )  # fmt: skip
        self._enter()
        if saved is not None:
            self._restore(saved)
        self._begin_rollouts()

    @property
    def _in_flight(self) -> int:
        return max(self.recipe.batch, self.recipe.in_flight)

    def _first_policy(self) -> GlmMoeDsa:
        if self.recipe.start is not None:
            return load_model(model_directory(self.recipe.start), dtype="float32")
        return GlmMoeDsa(self.recipe.model).initialise(self.recipe.seed)

    def _enter(self) -> None:
        """What the phase at hand trains with."""
        self.policy.train()
        if not self.warm:
            assert self.recipe.warmup is not None
            train_parts(self.policy, indexer=False)
            self._warm_optimizer = MixedOptimizer(self.policy, self.policy.config, self.recipe.warmup.optim)
            return
        critic = Critic.like(self.policy) if self.recipe.algorithm == "ppo" else None
        self.learner = Learner(self.recipe, self.policy, critic, self._workers)

    def _begin_rollouts(self) -> None:
        self.rollouts = Rollouts(
            self.llm, self._episode, stop_ids=self.recipe.task.stop_ids, seed=self.recipe.seed,
            in_flight=self._in_flight, first=self.rollouts_made, again=self._owed,
        )  # fmt: skip
        self._publish()

    def _episode(self, number: int) -> Episode:
        task, problem = self.recipe.task, number // self.recipe.group
        environment = task.environment(self.recipe.seed * (1 << 20) + problem)
        return Episode(
            number, environment, self.recipe.limits, task=task.name, name=f"train-{number}", group=f"problem-{problem}"
        )

    @property
    def phase(self) -> Phase:
        """What the next update trains."""
        if not self.warm:
            return "warmup"
        needs_values = self.recipe.algorithm == "ppo" and self.value_steps < self.recipe.value_steps
        return "value" if needs_values else "policy"

    @property
    def finished(self) -> bool:
        """Whether all updates are done."""
        return self.warm and self.policy_steps >= self.recipe.steps

    def advance(self) -> dict[str, float]:
        """One update; its metrics."""
        if self.phase == "warmup":
            metrics = self._warm_up()
        else:
            metrics, self.learned = self.learn(self.roll_out())
        self.step += 1
        return metrics

    def _warm_up(self) -> dict[str, float]:
        settings = self.recipe.warmup
        assert settings is not None
        loss = demonstrate(self.recipe, self.policy, self._warm_optimizer, self.warm_steps, self._workers)
        self.warm_steps += 1
        metrics = {"demonstration_loss": loss}
        if self.warm_steps % settings.every == 0 or self.warm_steps >= settings.steps:
            self._publish()
            metrics |= self.measure()
            if metrics["sampled"] >= settings.until:
                self.warm = True
                self._enter()
            elif self.warm_steps >= settings.steps:
                raise ValueError(
                    f"after {self.warm_steps} updates on demonstrations {metrics['sampled']:.1%} of held-out problems "
                    f"succeed as they are sampled, {settings.until:.0%} are wanted; allow more steps in the recipe's "
                    "warmup, or a higher rate"
                )
        return metrics

    def roll_out(self) -> list[Trajectory]:
        """The rollouts of an update; those that are too old are dropped and counted."""
        found: list[Trajectory] = []
        while len(found) < self.recipe.batch:
            made = self.rollouts.collect(self.recipe.batch - len(found), ahead=self.recipe.ahead)
            fresh = [each for each in made if each.staleness(self.version) <= self.recipe.most_stale]
            if len(fresh) < len(made):
                self.rollouts.drop("stale", len(made) - len(fresh))
            found += fresh
        return [self._at_random(each) for each in found] if self.recipe.random_reward else found

    def _at_random(self, trajectory: Trajectory) -> Trajectory:
        coin = random.Random(f"{self.recipe.seed}/{trajectory.name}").random() < 0.5
        return replace(trajectory, reward=float(coin))

    def learn(self, trajectories: Sequence[Trajectory]) -> tuple[dict[str, float], list[Trajectory]]:
        """One update from rollouts, and new weights for those to come."""
        policy_too = self.phase == "policy"
        # Between two publications no recorded probability is of the policy's weights
        same = self.version if self.policy_steps % self.recipe.publish_every == 0 else NOT_SAMPLED
        metrics, shown = self.learner.learn(trajectories, same, self.policy_steps, policy_too=policy_too)
        metrics |= self._rollout_metrics(trajectories)
        if policy_too:
            self.policy_steps += 1
            if self.policy_steps % self.recipe.publish_every == 0:
                self.version += 1
                self.rollouts.pause()
                self._publish()
        else:
            self.value_steps += 1
        self.rollouts_made = self.rollouts.next_number
        return metrics, shown

    def _rollout_metrics(self, trajectories: Sequence[Trajectory]) -> dict[str, float]:
        number, counts = len(trajectories), self.rollouts.counts
        stale = [each.staleness(self.version) for each in trajectories]
        return {
            "reward": sum(each.total_reward for each in trajectories) / number,
            "trained_tokens": float(sum(each.trained for each in trajectories)),
            "segments": sum(len(each.segments) for each in trajectories) / number,
            "truncated": sum(each.status == "truncated" for each in trajectories) / number,
            "staleness": sum(stale) / number,
            "most_stale": float(max(stale)),
            "carried": float(counts.carried),
            "dropped": float(sum(counts.dropped.values())),
        }

    @torch.no_grad()
    def _publish(self) -> None:
        """Give the rollouts' engine the policy's weights."""
        own, other = self.policy.state_dict(), self.llm.model.state_dict()
        for name, tensor in other.items():
            tensor.copy_(own[name])
        self.rollouts.resume(self.version) if hasattr(self, "rollouts") else self.llm.model.weights_changed()

    def measure(self) -> dict[str, float]:
        """Success on held-out problems with the weights that were published last: `sampled` and `greedy`."""
        recipe = self.recipe
        return success(self.llm, recipe.task, recipe.limits, recipe.evaluate_problems, seed=recipe.seed)

    def save(self) -> None:
        """Write a checkpoint. Unfinished rollouts are not in it: they begin again."""
        state: dict[str, Any] = {name: getattr(self, name) for name in _COUNTERS}
        state |= {"rollouts_made": self.rollouts.next_number, "owed": self.rollouts.owed}
        state |= {"settings": self.recipe.record(), "warm": self.warm, "rng": torch.get_rng_state()}
        if self.warm:
            state["learner"] = self.learner.state_dict()
        else:
            state |= {"policy": self.policy.state_dict(), "optimizer": self._warm_optimizer.state_dict()}
        save_checkpoint(self.directory, state)

    def _restore(self, saved: dict[str, Any]) -> None:
        record = self.recipe.record()
        different = [key for key in record if saved["settings"].get(key) != record[key]]
        if different:
            name, was = different[0], saved["settings"].get(different[0])
            raise ValueError(
                f"the checkpoint in {self.directory} was made with {name} {was!r}, the recipe has {record[name]!r}; "
                "undo the change or use another folder"
            )
        for name in _COUNTERS:
            setattr(self, name, saved[name])
        self.warm, self._owed = saved["warm"], saved["owed"]
        self._enter()
        if self.warm:
            self.learner.load_state_dict(saved["learner"])
        else:
            self.policy.load_state_dict(saved["policy"])
            self._warm_optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])


_COUNTERS = ("step", "warm_steps", "value_steps", "policy_steps", "version", "rollouts_made")
