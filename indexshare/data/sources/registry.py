"""The sources that a recipe's mixture may name. A new one is a class in a file of its own, and a call of `register`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from indexshare.config.fields import check_fields
from indexshare.data.corpus import TokenCorpus
from indexshare.data.sources.base import Source
from indexshare.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a run has to make rows from: its training text as token ids, and the tokenizer."""

    corpus: TokenCorpus
    tokenizer: Tokenizer


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How a mixture uses a source that takes settings: the weight of its rows, and the settings by name.

    Where a source takes none, the weight alone says the same.
    """

    weight: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, "Draw: ")


MakeSource = Callable[..., Source]  # (material, seed, **settings)
_SOURCES: dict[str, MakeSource] = {}


def register(name: str, make: MakeSource) -> None:
    """Let mixtures name a source.

    Args:
        name: in mixtures and in the state of a run.
        make: called with the `Material` of the run, the seed of the stage, and the settings of the `Draw` as keywords.
            Sources that would otherwise draw the same random numbers offset the seed.

    Raises:
        ValueError: the name is taken by a source from elsewhere. (A file that is run again replaces its own.)
    """
    known = _SOURCES.get(name, make)
    if known.__module__ != make.__module__:
        raise ValueError(f"a source named {name!r} is registered by {known.__module__}; choose another name")
    _SOURCES[name] = make


def source_names() -> tuple[str, ...]:
    """Names that a mixture may use, in the order of registration."""
    return tuple(_SOURCES)


def make_source(name: str, use: float | Draw, material: Material, seed: int) -> Source:
    """The source that a mixture names, at its beginning.

    Raises:
        ValueError: no such source, or settings that it does not take.
    """
    if name not in _SOURCES:
        raise ValueError(f"no source is named {name!r}; registered are {source_names()}")
    make, settings = _SOURCES[name], use.settings if isinstance(use, Draw) else {}
    try:
        inspect.signature(make).bind(material, seed, **settings)
    except TypeError as error:
        raise ValueError(f"source {name!r} with the settings {dict(settings)}: {error}") from error
    return make(material, seed, **settings)


def weight_of(use: float | Draw) -> float:
    """The weight of a mixture's entry."""
    return use.weight if isinstance(use, Draw) else use
