"""Rollouts of a task's expert, as trajectories: what a policy begins from."""

from __future__ import annotations

from indexshare.rl.environment import Task
from indexshare.rl.episode import Episode, Limits
from indexshare.rl.trajectory import Trajectory


def demonstration(task: Task, limits: Limits, number: int) -> Trajectory:
    """The expert's rollout of a training problem, with the same contexts and compactions as a policy's.

    Log-probabilities are 0 and versions 0: nobody's policy sampled it.
    """
    environment = task.environment(number)
    episode = Episode(number, environment, limits, task=task.name, name=f"demonstration-{number}")
    while not episode.finished:
        tokens = environment.expert_summary() if episode.summarising else environment.expert()
        if len(tokens) > episode.room:
            raise ValueError(
                f"a demonstration of task {task.name!r} has {len(tokens)} tokens where {episode.room} are left; allow "
                "more tokens a turn or a longer context"
            )
        episode.receive(tokens, [0.0] * len(tokens), 0, whole=True)
    return episode.trajectory()
