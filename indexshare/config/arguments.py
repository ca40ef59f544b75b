"""Numbers that callers give: those of Python, numpy and torch alike, within bounds, or one clear line. No torch."""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable
from typing import Any

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def as_integer(name: str, value: Any, *, low: int, high: int | None = None, hint: str = "") -> int:
    """`value` as an int between `low` and `high`, both included.

    Args:
        name: what to call it in the message.
        value: any integer, a numpy or torch scalar too; neither a boolean nor a float.
        hint: ends the message, such as `"; use 0 to keep all tokens"`.

    Raises:
        ValueError: no integer, or out of range.
    """
    number = plain_integer(value)
    if number is None or number < low or (high is not None and number > high):
        expected = f"an integer, {low} or more" if high is None else f"an integer from {low} to {high}"
        raise ValueError(f"{name} is {value!r}; expected {expected}{hint}")
    return number


def as_bytes(name: str, value: Any) -> int | None:
    """A number of bytes, as an integer or as a text such as `2G` or `1.5 GiB`; None stays None.

    Raises:
        ValueError: it is neither.
    """
    if value is None:
        return None
    if isinstance(value, str):
        found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)\s*([KMGT]?)(?:i?B)?", value.strip(), re.IGNORECASE)
        if found is None or (size := int(float(found[1]) * _UNITS[found[2].upper()])) < 1:
            raise ValueError(f"{name} is {value!r}; expected bytes such as 500M, 2G or 2147483648")
        return size
    return as_integer(name, value, low=1, hint=', or a text such as "2G"')


def as_number(name: str, value: Any, expected: str, holds: Callable[[float], bool]) -> float:
    """`value` as a finite number for which `holds` is true; integers stay integers.

    Raises:
        ValueError: it is no such number; the text says what was `expected`.
    """
    number: float | None = plain_integer(value)
    if number is None:
        number = _plain_float(value)
    if number is None or not abs(number) <= sys.float_info.max or not holds(number):
        raise ValueError(f"{name} is {value!r}; expected {expected}")
    return number


def plain_integer(value: Any) -> int | None:
    """`value` as an int if it is an integer of any library and no boolean, else None."""
    if type(value) is int:
        return value
    if _is_boolean(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _plain_float(value: Any) -> float | None:
    """`value` as a float if it is a number of any library, else None; texts are none."""
    if isinstance(value, str | bytes | bytearray) or _is_boolean(value):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # RuntimeError: a tensor of several entries
        return None


def _is_boolean(value: Any) -> bool:
    """Whether this is True or False, of Python, numpy or torch (told by the name of its type or dtype)."""
    return isinstance(value, bool) or "bool" in type(value).__name__ or "bool" in str(getattr(value, "dtype", ""))


def shown(value: Any) -> str:
    """A value as errors show it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
