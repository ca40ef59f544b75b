"""What a run has trained so far: kept in its checkpoints, so that its record is of what was done, not of what is asked.

A recipe may change between two starts of a run. What has been trained stays in the record as it was; rates of the stage
at hand take effect and are recorded with the update they came in at; everything else of a stage that has begun is
refused, with the differences by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from indexshare.train.recipe import Recipe, start_directory
from indexshare.train.stages import Stage

# Fields of a stage at hand that may change: how it learns, and how it is cut to the machine; not what it learns.
_FREE = ("optim.", "schedule.", "micro_tokens", "objectives.Balance.rate")
_SHOWN = 4  # differences named in one line


class History:
    """Stages as they were trained, the configuration they were trained for, and where the run began.

    Args:
        state: of a checkpoint.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state

    @classmethod
    def begin(cls, recipe: Recipe) -> History:
        """Of a run that has trained nothing."""
        ancestor = None if recipe.start is None else training_record(start_directory(recipe))
        return cls({"model": _plain(recipe.model.to_dict()), "start": recipe.start, "ancestor": ancestor, "stages": []})

    @classmethod
    def assumed(cls, recipe: Recipe, begun: int) -> History:
        """Of a checkpoint that does not say (an older one): that the recipe has not changed."""
        state = {"model": _plain(recipe.model.to_dict()), "start": recipe.start, "stages": []}
        try:
            state["ancestor"] = None if recipe.start is None else training_record(start_directory(recipe))
        except ValueError:  # the start is gone; the run goes on without it
            state["ancestor"] = None
        history = cls(state)
        for stage in recipe.stages[:begun]:
            history.enter(stage)
        return history

    def enter(self, stage: Stage) -> None:
        """A stage begins."""
        self._state["stages"].append(_plain(stage.record()))

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return self._state

    def record(self) -> dict[str, Any]:
        """`start`, `ancestor` and `stages` for `training.json`; a stage whose rates changed midway says when."""
        return {key: self._state[key] for key in ("start", "ancestor", "stages")}

    def resume(self, recipe: Recipe, stage_step: int, folder: Path) -> list[str]:
        """Compare with the recipe that the run goes on by, from update `stage_step` of the last stage begun.

        Returns:
            Lines about differences that have no effect, or take effect from now on.

        Raises:
            ValueError: a difference that cannot be had: of the model, of a stage at hand, or of a finished run.
        """
        begun = self._state["stages"]
        current = recipe.stages[len(begun) - 1]
        model = _differences(self._state["model"], _plain(recipe.model.to_dict()))
        if model:
            raise ValueError(
                f"the run in {folder} trains a model whose configuration differs from the recipe's: {_named(model)}; "
                "use another folder"
            )
        notes = []
        if recipe.start != self._state["start"]:
            notes.append(f"the run began from {self._state['start']}; that the recipe now starts from {recipe.start} "
                         "has no effect")  # fmt: skip
        done = begun if stage_step >= current.steps else begun[:-1]
        for was, stage in zip(done, recipe.stages, strict=False):
            changed = _differences(_effective(was), _plain(stage.record()))
            if changed:
                notes.append(
                    f"stage {stage.name!r} was trained before, and stays recorded as it was: {_named(changed)}"
                )
        if len(done) == len(recipe.stages) and notes:
            raise ValueError(
                f"the run in {folder} is finished, and the recipe has changed since ({'; '.join(notes)}); nothing is "
                "left to train: use another folder, or undo the change to write the model again"
            )
        return notes + ([] if len(done) == len(begun) else self._change(current, stage_step, folder))

    def _change(self, stage: Stage, stage_step: int, folder: Path) -> list[str]:
        """Let the rates of the stage at hand change from the next update on; ValueError for anything else."""
        was = self._state["stages"][-1]
        changed = _differences(_effective(was), _plain(stage.record()))
        fixed = {key: pair for key, pair in changed.items() if not key.startswith(_FREE)}
        if fixed:
            raise ValueError(
                f"the run in {folder} is at update {stage_step} of stage {stage.name!r}, in which the recipe has "
                f"changed: {_named(fixed)}; undo the change, or use another folder (rates, and stages that have not "
                "begun, may change)"
            )
        if not changed:
            return []
        new = {key: value for key, (_, value) in changed.items()}
        changes = was.setdefault("changed", [])
        if changes and changes[-1]["from_update"] == stage_step + 1:
            changes[-1] |= new
        else:
            changes.append({"from_update": stage_step + 1} | new)
        return [f"from update {stage_step + 1} of stage {stage.name!r} on: {_named(changed)}"]


def _effective(stage: dict[str, Any]) -> dict[str, Any]:
    """The flat fields of a recorded stage after its last change."""
    flat = _flat({key: value for key, value in stage.items() if key != "changed"})
    for change in stage.get("changed", []):
        flat |= {key: value for key, value in change.items() if key != "from_update"}
    return flat


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted names whose values differ, of the fields that both have (another version may have others)."""
    old, new = _flat(was), _flat(now)
    both = {key.split(".")[0] for key in old} & {key.split(".")[0] for key in new}
    names = [key for key in dict.fromkeys([*old, *new]) if key.split(".")[0] in both]
    names = [key for key in names if not key.startswith(_FREE) or (key in old and key in new)]
    return {key: (old.get(key), new.get(key)) for key in names if old.get(key) != new.get(key)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        flat |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat


def _named(changed: Mapping[str, tuple[Any, Any]]) -> str:
    shown = [f"{key} was {old!r}, is now {new!r}" for key, (old, new) in changed.items()]
    more = [f"and {len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    return ", ".join([*shown[:_SHOWN], *more])


def _plain(value: Any) -> Any:
    """As JSON has it: what is compared later has been through a file."""
    return json.loads(json.dumps(value))


def training_record(start: Path) -> dict[str, Any] | None:
    """What `training.json` says of the model in a directory, if there is one."""
    file = start / "training.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
