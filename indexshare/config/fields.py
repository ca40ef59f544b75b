"""Fields of dataclasses that people fill in by hand: each of the type that its annotation says, or a clear line.

Numbers of numpy count as numbers and become Python's, lists become tuples: what is checked once can be compared, copied
and written as JSON afterwards. No torch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from indexshare.config.arguments import shown


class _Unfit(Exception):
    """A value is not of the wanted type."""


def check_fields(record: Any, where: str = "") -> None:
    """Check, and where that loses nothing convert, every field of a dataclass by its annotation.

    Understood are int, float (finite), bool, str, Path, None, Literal, tuples and dicts of them, unions, and classes.

    Args:
        record: a dataclass instance, frozen ones too; call it first in `__post_init__`.
        where: begins the message, such as `"stage 'sparse': "`.

    Raises:
        ValueError: a field is of another type; the text names it, its value, and what was expected.
    """
    for name, kind in _hints(record.__class__).items():
        value = getattr(record, name)
        try:
            fitted = _fit(value, kind)
        except _Unfit:
            hint = "; leave out the quotes" if isinstance(value, str) and _is_number(value) else ""
            raise ValueError(f"{where}{name} is {shown(value)}; expected {_describe(kind)}{hint}") from None
        object.__setattr__(record, name, fitted)


@functools.cache  # annotations are compiled anew each time they are asked for
def _hints(kind: type) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fit(value: Any, kind: Any) -> Any:
    """The value as `kind`; _Unfit when it is none."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _fit_one_of(value, arguments)
    if origin is typing.Literal:
        return _require(value, isinstance(value, str) and value in arguments)
    if origin is tuple and isinstance(value, (tuple, list)):
        inner = arguments[:1] * len(value) if arguments[-1:] == (...,) else arguments
        if len(inner) == len(value):
            return tuple(_fit(item, wanted) for item, wanted in zip(value, inner, strict=True))
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {_fit(key, arguments[0]): _fit(item, arguments[1]) for key, item in value.items()}
    if kind in (int, float):
        return _fit_number(value, kind)
    return _require(value, kind is Any or (isinstance(kind, type) and isinstance(value, kind)))


def _require(value: Any, fits: bool) -> Any:
    if not fits:
        raise _Unfit
    return value


def _fit_one_of(value: Any, kinds: tuple[Any, ...]) -> Any:
    for kind in kinds:
        try:
            return _fit(value, kind)
        except _Unfit:
            continue
    raise _Unfit


def _fit_number(value: Any, kind: type) -> Any:
    wanted = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise _Unfit
    try:
        fitted = kind(value)
        return _require(fitted, math.isfinite(fitted))
    except OverflowError:  # a whole number beyond all floats
        raise _Unfit from None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _describe(kind: Any) -> str:
    """The type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    plain = {
        int: "a whole number", float: "a number", bool: "True or False", str: "a string", Path: "a path",
        type(None): "None",
    }  # fmt: skip
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is typing.Literal:
        return f"one of {arguments}"
    if origin is tuple:
        each = " and ".join(dict.fromkeys(_describe(argument) for argument in arguments if argument is not ...))
        return f"a tuple, each {each}" if ... in arguments else f"a tuple of {len(arguments)}, each {each}"
    if origin in (dict, Mapping):
        return f"a dict, each value {_describe(arguments[1])}"
    return plain.get(kind) or str(getattr(kind, "__name__", kind))
