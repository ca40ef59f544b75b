"""What this program reaches of a machine's ceilings, measured once for each level of its C++ kernels.

`reached.toml` beside this file has the figures and says how they were measured.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from indexshare.planner.roofline import STAGES, Reached

TABLE = Path(__file__).with_name("reached.toml")


@dataclass(frozen=True, kw_only=True)
class Program:
    """Shares of the ceilings in the two kinds of work; `source` says where they are from."""

    decode: Reached
    prefill: Reached
    source: str


def reached_by(level: str, compute: str) -> Program | None:
    """The shares with kernels of `level` and products of type `compute`; None where they have not been measured."""
    return _table().get((level, compute))


@cache
def _table() -> dict[tuple[str, str], Program]:
    levels = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {(level, kind): _program(facts) for level, types in levels.items() for kind, facts in types.items()}


def _program(facts: dict[str, Any]) -> Program:
    return Program(decode=_shares(facts["decode"]), prefill=_shares(facts["prefill"]), source=facts["source"])


def _shares(facts: dict[str, float]) -> Reached:
    stages = {name: share for name, share in facts.items() if name in STAGES}
    return Reached(arithmetic=stages, **{name: value for name, value in facts.items() if name not in stages})
