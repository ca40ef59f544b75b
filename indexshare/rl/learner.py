"""What is done with a batch of rollouts: values, credit, and the updates of critic and policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from indexshare.data.batch import Batch
from indexshare.model.glm import GlmMoeDsa
from indexshare.rl.batch import as_batch, column, per_token, trained_rows
from indexshare.rl.credit import Shares, credit, group_advantages, token_weights, whiten
from indexshare.rl.critic import Critic, explained_variance
from indexshare.rl.losses import token_logprobs
from indexshare.rl.objectives import PolicyGradient, ValueRegression
from indexshare.rl.recipe import Recipe
from indexshare.rl.trajectory import Trajectory
from indexshare.rl.updates import update
from indexshare.train.objectives import Indexer, Objective
from indexshare.train.optim import MixedOptimizer
from indexshare.train.workers import Workers


class Learner:
    """Policy and critic with their optimizers.

    Args:
        recipe: the rules.
        policy: is trained in place; its trunk, not its draft layer, its experts' biases or (unless the recipe says so)
            its indexers.
        critic: None with GRPO.
        workers: run passes of an update side by side.
    """

    def __init__(self, recipe: Recipe, policy: GlmMoeDsa, critic: Critic | None, workers: Workers) -> None:
        self.recipe, self.policy, self.critic, self._workers = recipe, policy, critic, workers
        self._objectives: list[Objective] = [PolicyGradient(ratio=recipe.ratio)]
        if recipe.indexer:
            self._objectives.append(Indexer())
        train_parts(policy, indexer=recipe.indexer)
        self.optimizer = MixedOptimizer(policy, policy.config, recipe.optim)
        if critic is not None:
            critic.train_only(recipe.critic_trains)
            self.critic_optimizer = MixedOptimizer(critic, critic.config, recipe.critic_optim)

    def learn(
        self, trajectories: Sequence[Trajectory], version: int, step: int, *, policy_too: bool = True
    ) -> tuple[dict[str, float], list[Trajectory]]:
        """One update of each model (of the critic as many as the recipe says).

        Args:
            trajectories: of the update.
            version: of the policy's weights now; -1 where none was published with these.
            step: of the schedule.
            policy_too: False for an update of the critic alone.

        Returns:
            Metrics, and the trajectories with the columns `advantage`, `value` and `ratio`.
        """
        segments = [segment for each in trajectories for segment in each.segments]
        plain = as_batch(segments)
        logprobs = per_token(self.policy, plain, self._logprobs, micro_rows=self._micro_rows(plain))
        metrics = self._gap(plain, logprobs, segments, version)
        shares, values = self._credit(trajectories, plain)
        columns = self._columns(trajectories, shares, values)
        batch = as_batch(segments, columns)
        if self.critic is not None:
            metrics |= self._update_critic(batch, step)
        if policy_too:
            metrics |= self._update(self.policy, self.optimizer, batch, self._objectives, step)
        ratios = [np.exp(row.numpy()[: len(s)] - s.logprobs) for row, s in zip(logprobs, segments, strict=True)]
        return metrics, _with_columns(trajectories, columns, ratios)

    def _micro_rows(self, batch: Batch) -> int:
        return max(1, self.recipe.micro_tokens // batch.length)

    def _logprobs(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        return token_logprobs(hidden, self.policy.lm_head.weight, tokens)

    def _gap(self, batch: Batch, logprobs: Tensor, segments: Sequence[Any], version: int) -> dict[str, float]:
        """How far the trainer's log-probabilities are from the engine's, where both have the same weights."""
        rows = trained_rows(batch)
        versions = as_batch(segments, [{"version": s.versions.astype(np.float32)} for s in segments])
        now = column(versions, "version")[rows] == version
        away = (logprobs[:, 1:].reshape(-1)[rows] - column(batch, "behaviour")[rows]).abs()
        same = away[now]
        return {
            "logprob_gap": float(same.max()) if len(same) else 0.0,
            "logprob_gap_mean": float(same.mean()) if len(same) else 0.0,
            "fresh_tokens": float(now.float().mean()) if len(now) else 0.0,
        }

    def _credit(self, trajectories: Sequence[Trajectory], batch: Batch) -> tuple[list[list[Shares]], list[np.ndarray]]:
        """Advantages and targets of each segment of each rollout, and the critic's values [T + 1] of all segments."""
        if self.critic is None:
            rewards = [each.total_reward for each in trajectories]
            groups = [each.group for each in trajectories]
            found = group_advantages(rewards, groups, floor=self.recipe.whiten or 1e-6)
            zero = [np.zeros(len(s) + 1) for each in trajectories for s in each.segments]
            return [_constant(each, value) for each, value in zip(trajectories, found, strict=True)], zero
        critic = self.critic
        rows = per_token(critic, batch, lambda h, _: critic.values(h), micro_rows=self._micro_rows(batch)).numpy()
        segments = [segment for each in trajectories for segment in each.segments]
        values = [row[: len(s) + 1].astype(np.float64) for row, s in zip(rows, segments, strict=True)]
        shares, start = list[list[Shares]](), 0
        for each in trajectories:
            own = values[start : start + len(each.segments)]
            shares.append(credit(each, own, self.recipe.credit))
            start += len(own)
        return shares, values

    def _columns(
        self, trajectories: Sequence[Trajectory], shares: list[list[Shares]], values: list[np.ndarray]
    ) -> list[dict[str, np.ndarray]]:
        """`advantage` (whitened), `target`, `weight` and `value` of every token of every segment."""
        segments = [segment for each in trajectories for segment in each.segments]
        flat = [share for each in shares for share in each]
        counts = [[segment.trained for segment in each.segments] for each in trajectories]
        weights = [w for row in token_weights(counts, self.recipe.normalise) for w in row]
        advantages = np.concatenate([share.advantages[s.mask] for share, s in zip(flat, segments, strict=True)])
        if self.recipe.whiten is not None and self.critic is not None:
            advantages = whiten(advantages, self.recipe.whiten)
        columns, start = list[dict[str, np.ndarray]](), 0
        for segment, share, weight, value in zip(segments, flat, weights, values, strict=True):
            spread = np.zeros(len(segment))
            spread[segment.mask] = advantages[start : start + segment.trained]
            start += segment.trained
            columns.append({"advantage": spread, "target": share.targets, "weight": weight * segment.mask,
                            "value": value[:-1]})  # fmt: skip
        return columns

    def _update_critic(self, batch: Batch, step: int) -> dict[str, float]:
        assert self.critic is not None
        objectives = [ValueRegression(clip=self.recipe.value_clip)]
        rows = trained_rows(batch)
        found = {"explained_variance": explained_variance(*(column(batch, n)[rows] for n in ("value", "target")))}
        for _ in range(self.recipe.critic_updates):
            metrics = self._update(self.critic, self.critic_optimizer, batch, objectives, step)
        return found | {"value_loss": metrics["value_loss"], "critic_grad_norm": metrics["grad_norm"]}

    def _update(
        self, model: GlmMoeDsa, optimizer: MixedOptimizer, batch: Batch, objectives: Sequence[Objective], step: int
    ) -> dict[str, float]:
        factor = self.recipe.schedule.factor(step, self.recipe.steps)
        return update(
            model, optimizer, batch, objectives, factor=factor, micro_tokens=self.recipe.micro_tokens,
            workers=self._workers,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Both models and their optimizers."""
        state: dict[str, Any] = {"policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict()}
        if self.critic is not None:
            state |= {"critic": self.critic.state_dict(), "critic_optimizer": self.critic_optimizer.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
            self.critic_optimizer.load_state_dict(state["critic_optimizer"])


def train_parts(policy: GlmMoeDsa, *, indexer: bool) -> None:
    """Let gradients reach the trunk, and its indexers if asked; never the draft layer."""
    for name, parameter in policy.named_parameters():
        draft = name.startswith("mtp.")
        parameter.requires_grad_(not draft and (indexer or ".indexer." not in name))


def _constant(trajectory: Trajectory, advantage: float) -> list[Shares]:
    """The same advantage for every trained token of a rollout."""
    return [Shares(advantages=advantage * s.mask, targets=np.zeros(len(s))) for s in trajectory.segments]


def _with_columns(
    trajectories: Sequence[Trajectory], columns: list[dict[str, np.ndarray]], ratios: list[np.ndarray]
) -> list[Trajectory]:
    """The trajectories with what the viewer shows."""
    found, start = list[Trajectory](), 0
    for each in trajectories:
        parts = []
        for number, segment in enumerate(each.segments, start):
            shown = {"advantage": columns[number]["advantage"], "value": columns[number]["value"]}
            parts.append(segment.with_columns(**shown, ratio=ratios[number]))
        found.append(replace(each, segments=tuple(parts)))
        start += len(each.segments)
    return found
