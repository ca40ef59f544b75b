"""Which layers run the lightning indexer and which reuse its selection (IndexShare).

This is the only place that knows Full from Shared. Every public spelling goes through one
constructor: the explicit list `indexer_types`, the string `index_topk_pattern`, and the schedule
`index_topk_freq` + `index_skip_topk_offset`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from indexshare.config.arguments import plain_integer, shown

FULL = "full"
SHARED = "shared"
_LETTERS = {"F": FULL, "S": SHARED}

# What transformers assumes when a schedule names a frequency but no offset.
DEFAULT_OFFSET = 2


@dataclass(frozen=True)
class SharePlan:
    """One entry per trunk layer, `"full"` or `"shared"`; the first layer is always Full.

    A Full layer runs its own indexer and keeps index keys; a Shared layer attends to the tokens that
    the last Full layer before it selected, and owns neither. The draft layer is not part of the plan:
    it has its own indexer (GLM-5.2 release notes, "IndexShare").
    """

    types: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.types:
            raise ValueError("a share plan needs at least one layer, got none")
        for layer, kind in enumerate(self.types):
            if kind not in (FULL, SHARED):
                raise ValueError(f"layer {layer} of the share plan is {shown(kind)}; expected 'full' or 'shared'")
        if self.types[0] != FULL:
            raise ValueError(
                "layer 0 of the share plan is 'shared', but there is no earlier selection to reuse; make it 'full'"
            )

    @classmethod
    def from_pattern(cls, pattern: str | Sequence[str]) -> SharePlan:
        """Plan from `"FFFSSS..."` (one letter per layer), or from a list of such letters or of type names."""
        kinds = []
        for layer, letter in enumerate(pattern):
            if not isinstance(letter, str) or letter not in (*_LETTERS, FULL, SHARED):
                raise ValueError(
                    f"position {layer} of the pattern {shown(pattern)} is {shown(letter)}; expected F or S"
                )
            kinds.append(_LETTERS.get(letter, letter))
        return cls(tuple(kinds))

    @classmethod
    def uniform(cls, layers: int, every: int, offset: int = DEFAULT_OFFSET) -> SharePlan:
        """Plan of the public schedule: layer l is Full iff `max(l - offset + 1, 0) % every == 0`.

        GLM-5.2 is `uniform(78, every=4, offset=3)`: Full at 0, 1, 2, 6, 10, ..., 74.
        """
        for name, value, least in (("layers", layers, 1), ("every", every, 1), ("offset", offset, 0)):
            if (number := plain_integer(value)) is None or number < least:
                raise ValueError(
                    f"{name} of a uniform share plan is {shown(value)}; expected an integer of at least {least}"
                )
        return cls(tuple(FULL if max(layer - offset + 1, 0) % every == 0 else SHARED for layer in range(layers)))

    @classmethod
    def all_full(cls, layers: int) -> SharePlan:
        """Plan in which every layer runs its own indexer (GLM-5.1, DeepSeek-V3.2)."""
        return cls((FULL,) * layers)

    @classmethod
    def from_spellings(
        cls,
        layers: int,
        *,
        indexer_types: Iterable[str] | None = None,
        pattern: str | Sequence[str] | None = None,
        freq: int | None = None,
        offset: int | None = None,
    ) -> SharePlan:
        """Plan from whichever public spellings are present; all of them must have `layers` entries and agree.

        With none present every layer is Full, as in transformers.

        Raises:
            ValueError: a spelling has the wrong length, holds an unknown type, starts with a Shared
                layer, or two spellings disagree.
        """
        found: dict[str, SharePlan] = {}
        if indexer_types is not None:
            found["indexer_types"] = cls(tuple(indexer_types))
        if pattern is not None:
            found["index_topk_pattern"] = cls.from_pattern(pattern)
        if freq is not None:
            # transformers clamps a frequency of 0 to 1 (every layer Full); negative values mean nothing.
            every = 1 if freq == 0 else freq
            found["index_topk_freq/index_skip_topk_offset"] = cls.uniform(
                layers, every, DEFAULT_OFFSET if offset is None else offset
            )
        for name, plan in found.items():
            if plan.num_layers != layers:
                raise ValueError(
                    f"{name} describes {plan.num_layers} layers, but num_hidden_layers is {layers}; "
                    "give one entry per layer"
                )
        plans = list(found.items())
        for name, plan in plans[1:]:
            if plan != plans[0][1]:
                layer = next(i for i, (a, b) in enumerate(zip(plan.types, plans[0][1].types, strict=True)) if a != b)
                raise ValueError(
                    f"{plans[0][0]} and {name} disagree at layer {layer} "
                    f"({plans[0][1].types[layer]!r} against {plan.types[layer]!r}); keep one, or make them agree"
                )
        return plans[0][1] if plans else cls.all_full(layers)

    @classmethod
    def from_config(cls, config: HasPlan) -> SharePlan:
        """The plan of a model configuration."""
        return config.share_plan

    @property
    def num_layers(self) -> int:
        """Trunk layers covered by the plan."""
        return len(self.types)

    @property
    def pattern(self) -> str:
        """The plan as letters, e.g. `"FFFSSSFSSSFSS"`."""
        return "".join("F" if kind == FULL else "S" for kind in self.types)

    @property
    def full_layers(self) -> tuple[int, ...]:
        """Indices of the layers that run an indexer, ascending."""
        return tuple(layer for layer, kind in enumerate(self.types) if kind == FULL)

    @property
    def shared_layers(self) -> tuple[int, ...]:
        """Indices of the layers that reuse a selection, ascending."""
        return tuple(layer for layer, kind in enumerate(self.types) if kind == SHARED)

    def is_full(self, layer: int) -> bool:
        """Whether `layer` runs its own indexer."""
        return self.types[layer] == FULL

    def source(self, layer: int) -> int:
        """The Full layer whose selection `layer` attends to: the last Full layer at or before it."""
        return next(full for full in range(layer, -1, -1) if self.types[full] == FULL)

    def served_by(self, full_layer: int) -> tuple[int, ...]:
        """All layers, itself included, that use the selection of `full_layer`."""
        if not self.is_full(full_layer):
            raise ValueError(
                f"layer {full_layer} is Shared and selects nothing; Full layers are {list(self.full_layers)}"
            )
        later = range(full_layer + 1, self.num_layers)
        end = next((layer for layer in later if self.types[layer] == FULL), self.num_layers)
        return tuple(range(full_layer, end))


class HasPlan(Protocol):
    """A model configuration."""

    @property
    def share_plan(self) -> SharePlan:
        """Which layers run the indexer."""
