"""SharePlan: one constructor for every public spelling, and refusals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexshare.config import SharePlan, preset


def test_glm_52_is_full_at_the_published_layers() -> None:
    assert preset("glm-5.2").share_plan.full_layers == (0, 1, *range(2, 75, 4))
    assert SharePlan.uniform(78, every=4, offset=3) == preset("glm-5.2").share_plan
    assert SharePlan.from_config(preset("glm-5.2")) == preset("glm-5.2").share_plan


def test_sources_and_groups() -> None:
    plan = SharePlan.from_pattern("FFFSSSFSSSFSS")
    assert [plan.source(layer) for layer in range(13)] == [0, 1, 2, 2, 2, 2, 6, 6, 6, 6, 10, 10, 10]
    assert plan.served_by(6) == (6, 7, 8, 9)
    assert plan.pattern == "FFFSSSFSSSFSS"
    with pytest.raises(ValueError, match="layer 3 is Shared"):
        plan.served_by(3)


@given(layers=st.integers(1, 90), every=st.integers(1, 9), offset=st.integers(1, 9))
def test_all_spellings_give_one_plan(layers: int, every: int, offset: int) -> None:
    plan = SharePlan.uniform(layers, every, offset)
    assert SharePlan.from_spellings(layers, freq=every, offset=offset) == plan
    assert SharePlan.from_spellings(layers, pattern=plan.pattern) == plan
    assert SharePlan.from_spellings(layers, indexer_types=plan.types) == plan
    assert (
        SharePlan.from_spellings(layers, indexer_types=plan.types, pattern=plan.pattern, freq=every, offset=offset)
        == plan
    )
    assert sorted(plan.full_layers + plan.shared_layers) == list(range(layers))
    assert sum(len(plan.served_by(full)) for full in plan.full_layers) == layers


def test_nothing_given_means_every_layer_full() -> None:
    assert SharePlan.from_spellings(4) == SharePlan.all_full(4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "SFFF"}, "layer 0"),
        ({"pattern": "FFXF"}, "expected F or S"),
        ({"pattern": "FSF"}, "describes 3 layers"),
        ({"indexer_types": ["full"] * 5}, "describes 5 layers"),
        ({"indexer_types": ["full", "none", "full", "full"]}, "layer 1"),
        ({"pattern": "FFSS", "freq": 2, "offset": 2}, "disagree at layer 3"),
        ({"indexer_types": ["full"] * 4, "pattern": "FSSS"}, "disagree at layer 1"),
        ({"freq": -1}, "every"),
        ({"freq": 4, "offset": 0}, "layer 0"),
    ],
)
def test_refusals_name_the_place(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharePlan.from_spellings(4, **arguments)
