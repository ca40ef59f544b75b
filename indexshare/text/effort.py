"""How much a model is to think: the words of public interfaces as the variables that its chat template reads.

GLM-5.2 has two levels, High and Max, and can be told not to think. Its template takes every word but `high` for Max, so
that `low` would mean most; the words are therefore mapped before it sees them. No torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_OFF, _HIGH = ("none", "minimal"), ("low", "medium", "high")


def thinking_variables(effort: str | None, own: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Variables for `ChatTemplate.render`.

    Args:
        effort: one of `EFFORTS`; None leaves the template its own default.
        own: variables that the user gives (`chat_template_kwargs`); they go before what `effort` says.
        known: variables that the template reads.

    Raises:
        ValueError: another word, or a template that has no levels, or no way not to think.
    """
    if effort is None:
        return dict(own)
    if effort not in EFFORTS:
        raise ValueError(f"reasoning_effort is {effort!r}; expected one of {', '.join(EFFORTS)}")
    thinks = bool({"enable_thinking", "reasoning_effort"} & set(known))
    if effort in _OFF:
        if thinks and "enable_thinking" not in known:
            raise ValueError(
                f"reasoning_effort is {effort!r}, but this model's chat template always thinks; use low, high or max"
            )
        return ({"enable_thinking": False} if thinks else {}) | dict(own)
    if not thinks:
        raise ValueError(
            f"reasoning_effort is {effort!r}, but this model's chat template has no reasoning; leave it out"
        )
    said: dict[str, Any] = {"enable_thinking": True, "reasoning_effort": "high" if effort in _HIGH else "max"}
    return {name: value for name, value in said.items() if name in known} | dict(own)
