"""How often a policy succeeds on held-out problems, as it samples and by its likeliest tokens."""

from __future__ import annotations

from collections.abc import Sequence

from indexshare.engine.llm import LLM
from indexshare.rl.environment import Task
from indexshare.rl.episode import Episode, Limits
from indexshare.rl.rollout import Rollouts
from indexshare.rl.trajectory import Trajectory


def held_out_rollouts(
    llm: LLM, task: Task, limits: Limits, problems: int, *, greedy: bool, seed: int
) -> list[Trajectory]:
    """One rollout of each of the first held-out problems."""

    def make(number: int) -> Episode:
        environment = task.environment(number, held_out=True)
        return Episode(number, environment, limits, task=task.name, name=f"held-out-{number}")

    # Other draws than those of training, whose episodes have the same numbers
    found = Rollouts(llm, make, stop_ids=task.stop_ids, seed=seed + (1 << 32), in_flight=problems, greedy=greedy)
    return found.collect(problems)


def mean_reward(trajectories: Sequence[Trajectory]) -> float:
    """Of the rewards at the ends."""
    return sum(each.reward for each in trajectories) / len(trajectories)


def success(llm: LLM, task: Task, limits: Limits, problems: int, *, seed: int) -> dict[str, float]:
    """Mean reward, `sampled` and `greedy`."""
    return {
        name: mean_reward(held_out_rollouts(llm, task, limits, problems, greedy=greedy, seed=seed))
        for name, greedy in (("sampled", False), ("greedy", True))
    }
