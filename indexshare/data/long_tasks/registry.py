"""All long tasks by name: an open table. The modules that fill it are loaded when it is first read."""

from __future__ import annotations

import difflib
from importlib import import_module

from indexshare.data.long_tasks.base import LongTask

_MODULES = ("retrieval", "tracking", "counting", "reading")
_TASKS: dict[str, LongTask] = {}


def register_long_task(task: LongTask) -> None:
    """Add a task; a later one of the same name replaces it."""
    _TASKS[task.name] = task


def long_tasks() -> dict[str, LongTask]:
    """All tasks by name."""
    for name in _MODULES:
        import_module(f"indexshare.data.long_tasks.{name}")
    return dict(_TASKS)


def long_task(name: str) -> LongTask:
    """The task called `name`.

    Raises:
        ValueError: no such task; the nearest name and all names are given.
    """
    tasks = long_tasks()
    if name not in tasks:
        near = difflib.get_close_matches(name, tasks, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ";"
        raise ValueError(f"no long task {name!r}{hint} expected one of {', '.join(tasks)}")
    return tasks[name]
