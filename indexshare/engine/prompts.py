"""What callers hand over, one prompt or many, with parameters for all or for each: one list of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from indexshare.engine.params import SamplingParams

Prompt = str | Sequence[int]


def as_batch(prompts: Any) -> list[Any]:
    """A list of prompts: a text or a flat list of ids counts as one. ValueError when there is nothing."""
    if isinstance(prompts, dict | set):
        raise ValueError(f"prompts is a {type(prompts).__name__}; expected a text, token ids, or a list of either")
    if isinstance(prompts, str | bytes) or not hasattr(prompts, "__iter__"):
        return [prompts]
    items = list(prompts)
    if not items:
        raise ValueError("prompts is empty; expected a text, token ids, or a list of either")
    return items if any(map(_is_prompt, items)) else [items]


def _is_prompt(item: Any) -> bool:
    """Whether an element of a list is itself a prompt, not one id; a tensor without dimensions is an id."""
    return hasattr(item, "__len__") and getattr(item, "ndim", 1) > 0


def as_settings(params: Any, count: int) -> list[SamplingParams]:
    """One for each of `count` prompts, from one for all or a list. ValueError for anything else."""
    settings = [params] * count if not isinstance(params, list | tuple) else list(params)
    if len(settings) != count:
        raise ValueError(f"{len(settings)} sampling parameters for {count} prompts; expected one, or one for each")
    for value in settings:
        if not isinstance(value, SamplingParams):
            raise ValueError(f"params is {value!r}; expected SamplingParams")
    return settings
