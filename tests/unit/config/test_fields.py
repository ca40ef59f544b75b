"""Fields of recipes and texts: the right type, or one line that says what is wrong."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from indexshare.config.fields import check_fields
from indexshare.config.presets import preset
from indexshare.data.corpus import TextFolder
from indexshare.data.packages import Package, PackageText
from indexshare.train.objectives import Draft
from indexshare.train.optim import OptimConfig, Schedule
from indexshare.train.recipe import Recipe
from indexshare.train.stages import pretrain


@dataclass(frozen=True, kw_only=True)
class Inner:
    x: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    count: int = 1
    rate: float = 0.5
    on: bool = False
    name: str = "a"
    kind: Literal["b", "c"] = "b"
    betas: tuple[float, float] = (0.9, 0.95)
    names: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    most: int | None = None
    where: str | Path = "."
    inner: Inner = field(default_factory=Inner)
    pattern: str | tuple[str, ...] = "*"

    def __post_init__(self) -> None:
        check_fields(self, "outer: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": "3"}, r"outer: count is '3'; expected a whole number; leave out the quotes"),
        ({"count": "many"}, r"outer: count is 'many'; expected a whole number$"),
        ({"count": 3.0}, "count is 3.0; expected a whole number"),
        ({"count": True}, "count is True; expected a whole number"),
        ({"count": None}, "count is None; expected a whole number"),
        ({"rate": "1e-3"}, "rate is '1e-3'; expected a number; leave out the quotes"),
        ({"rate": float("nan")}, "rate is nan; expected a number"),
        ({"rate": float("inf")}, "rate is inf; expected a number"),
        ({"rate": False}, "rate is False"),
        ({"on": 1}, "on is 1; expected True or False"),
        ({"name": 3}, "name is 3; expected a string"),
        ({"kind": "d"}, r"kind is 'd'; expected one of \('b', 'c'\)"),
        ({"kind": ["b"]}, r"kind is \['b'\]"),
        ({"betas": (0.9,)}, "expected a tuple of 2, each a number"),
        ({"betas": 0.9}, "betas is 0.9"),
        ({"names": "abc"}, "names is 'abc'; expected a tuple, each a string"),
        ({"names": (1,)}, r"names is \(1,\)"),
        ({"weights": {"a": "1"}}, "expected a dict, each value a number"),
        ({"weights": [("a", 1)]}, "expected a dict"),
        ({"most": "4"}, "most is '4'; expected a whole number or None; leave out the quotes"),
        ({"where": 3}, "expected a string or a path"),
        ({"inner": {"x": 1}}, "expected Inner"),
        ({"pattern": 3}, "expected a string or a tuple, each a string"),
    ],
)
def test_a_wrong_type_is_one_clear_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Outer(**changes)


def test_numbers_and_lists_are_converted() -> None:
    made = Outer(
        count=np.int32(7),  # type: ignore[arg-type]
        rate=3,
        betas=[np.float32(0.5), 1],  # type: ignore[arg-type]
        names=["x"],  # type: ignore[arg-type]
        most=np.int64(2),  # type: ignore[arg-type]
        weights={"a": 1},
    )
    assert made == Outer(count=7, rate=3.0, betas=(0.5, 1.0), names=("x",), most=2, weights={"a": 1.0})
    assert [type(value) for value in (made.count, made.rate, made.betas, made.most)] == [int, float, tuple, int]


@pytest.mark.parametrize(
    "make",
    [
        lambda: pretrain(tokens="1000", sequence_length=32, batch_tokens=64),
        lambda: pretrain(tokens=64, sequence_length=32, batch_tokens="64"),
        lambda: pretrain(tokens=64, sequence_length=32, batch_tokens=64, mixture={"text": "1"}),
        lambda: Draft(weight="0.3"),  # type: ignore[arg-type]
        lambda: pretrain(tokens=64, sequence_length=32, batch_tokens=64, optim={"muon_lr": 1}),
        lambda: OptimConfig(muon_lr="1e-3"),  # type: ignore[arg-type]
        lambda: Schedule(warmup="0.1"),  # type: ignore[arg-type]
        lambda: TextFolder(path=3),  # type: ignore[arg-type]
        lambda: TextFolder(path="x", held_out="0.1"),  # type: ignore[arg-type]
        lambda: TextFolder(path="x", exclude="tests"),  # type: ignore[arg-type]
        lambda: Package(name=3),  # type: ignore[arg-type]
        lambda: PackageText(base="x", packages=()),  # type: ignore[arg-type]
        lambda: Recipe(name="x", model=preset("tiny"), text=TextFolder(path="x"), stages=(), dtype="int8"),  # type: ignore[arg-type]
    ],
)
def test_every_part_of_a_recipe_is_checked(make: Any) -> None:
    with pytest.raises(ValueError, match=r" is .*; expected "):
        make()
