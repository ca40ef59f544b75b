"""An environment behind a guard. The same one serves training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from indexshare.rl.environment import Environment, Opening, Reply, Task
from indexshare.rl.guard.guard import Guard


class GuardedEnvironment(Environment):
    """Actions pass the guard before the environment sees them.

    Args:
        environment: behind it.
        guard: of the task.
        task: reads actions, and writes dummy outputs as its tools would.
    """

    def __init__(self, environment: Environment, guard: Guard, task: Task) -> None:
        self._inner, self._task = environment, task
        self.session = guard.session()

    def reset(self) -> Opening:
        """That of the environment."""
        return self._inner.reset()

    def step(self, action: Sequence[int]) -> Reply:
        """The environment's reply, or what the guard's mode puts in its place."""
        session, mode = self.session, self.session.guard.mode
        decision = session.check(self._task.read(action) or "")
        counts = {"hacks": session.hacks}
        if decision.hack and mode == "abort":
            return Reply(reward=0.0, done=True, details=counts | {"aborted": True})
        if decision.dummy is not None:
            return Reply(tokens=self._task.observe(decision.dummy), details=counts)
        reply = self._inner.step(action)
        earned = 0.0 if mode == "zero" and session.hacks else reply.reward
        return replace(reply, reward=earned, details={**reply.details, **counts})

    def expert(self) -> list[int]:
        """That of the environment."""
        return self._inner.expert()
