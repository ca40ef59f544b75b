"""Published speeds beside the ceilings that follow from shapes: what programs reach, and a check of the formulas."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexshare.config.presets import preset
from indexshare.planner.formats import weight_format
from indexshare.planner.hardware import find_machines
from indexshare.planner.roofline import Ceiling, decode_ceiling, prefill_ceiling

TABLE = Path(__file__).with_name("published.toml")
_CHUNK = 8192  # tokens of a prompt that servers read at a time


@dataclass(frozen=True, kw_only=True)
class PublishedSpeed:
    """One row of `published.toml`, which explains the fields."""

    model: str
    machine: str
    weights: str
    cache: str
    context: int
    batch: int
    seconds: float
    source: str
    what: str = "decode"
    tokens_per_step: int = 1
    full_attention: bool = False

    def ceiling(self) -> Ceiling:
        """Of the step, or of the whole prompt."""
        config, (machine,) = preset(self.model), find_machines(self.machine)
        weights = weight_format(self.weights)
        if self.what == "prefill":
            return prefill_ceiling(
                config, machine, self.context, chunk=_CHUNK, weights=weights, cache=self.cache,
                full_attention=self.full_attention,
            )  # fmt: skip
        return decode_ceiling(
            config, machine, self.context, batch=self.batch, weights=weights, cache=self.cache,
            full_attention=self.full_attention,
        )  # fmt: skip

    def compare(self) -> dict[str, Any]:
        """The least time that the shapes allow, and the published one as a multiple of it."""
        ceiling = self.ceiling()
        least = ceiling.seconds / self.tokens_per_step
        return {
            "what": self.what, "model": self.model, "machine": self.machine, "weights": self.weights,
            "context": self.context, "batch": self.batch, "published_seconds": self.seconds, "least_seconds": least,
            "ratio": self.seconds / least, "bound_by": ceiling.bound_by, "source": self.source,
        }  # fmt: skip


def published_speeds() -> list[PublishedSpeed]:
    """All rows."""
    return [PublishedSpeed(**row) for row in tomllib.loads(TABLE.read_text(encoding="utf-8"))["speed"]]
