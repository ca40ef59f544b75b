"""Credit against its plain twin under every rule, and what the rules mean."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from indexshare.rl import credit_reference
from indexshare.rl.credit import Credit, credit, discounted_sums, group_advantages, token_weights, whiten
from indexshare.rl.trajectory import Trajectory
from tests.unit.rl.trajectories import segment, trajectory

RULES = [
    {"boundary": boundary, "length_of": length_of, "lambda_policy": lambda_, "truncated": truncated}
    for boundary, length_of, lambda_, truncated in product(
        ("decay", "bootstrap", "none"), ("segment", "rollout"), (None, 0.9, 0.0), ("zero", "value")
    )
]
PICTURES = [
    ("suaaa",),
    ("suaaooaoaamm", "sccoaoaam", "scaa"),
    ("uoooo", "ua", "ccoo", "uaoa"),  # segments without a trained token
    ("ua" + "oa" * 150,),
]


def values_of(made: Trajectory, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=len(part) + 1) for part in made.segments]


def earning(made: Trajectory) -> Trajectory:
    """With rewards on actions and on observations."""
    rng = np.random.default_rng(7)
    parts = [replace(part, rewards=rng.normal(size=len(part)).astype(np.float32)) for part in made.segments]
    return replace(made, segments=tuple(parts))


@pytest.mark.parametrize("number", [1, 2, 127, 128, 129, 700])
@pytest.mark.parametrize("factor", [0.0, 0.9, 1.0])
def test_discounted_sums_are_those_of_a_loop(number: int, factor: float) -> None:
    deltas = np.random.default_rng(number).normal(size=number)
    sums, behind = np.zeros(number), 0.0
    for place in reversed(range(number)):
        sums[place] = behind = deltas[place] + factor * behind
    np.testing.assert_allclose(discounted_sums(deltas, factor), sums, rtol=1e-12, atol=1e-12)
    assert discounted_sums(np.zeros(0), factor).shape == (0,)


@pytest.mark.parametrize("pictures", PICTURES, ids=lambda p: f"{len(p)} segments, {len(p[0])} tokens")
@pytest.mark.parametrize("rules", RULES, ids=lambda r: "-".join(str(v) for v in r.values()))
@pytest.mark.parametrize("status", ["completed", "truncated"])
def test_every_rule_agrees_with_its_twin(pictures: tuple[str, ...], rules: dict[str, Any], status: Any) -> None:
    if len(pictures[0]) > 200 and rules["length_of"] == "segment" and rules["lambda_policy"] is not None:
        pytest.skip("nothing new")
    made = replace(earning(trajectory(*pictures, reward=0.75)), status=status)
    values, settings = values_of(made), Credit(gamma=0.97, lambda_critic=0.95, **rules)
    wanted = credit_reference.credit(made, values, settings)
    for found, (advantages, targets) in zip(credit(made, values, settings), wanted, strict=True):
        np.testing.assert_allclose(found.advantages, advantages, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.targets, targets, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("boundary", ["decay", "bootstrap", "none"])
def test_observations_take_no_part(boundary: Any) -> None:
    """Neither their number nor the critic's values of them matter: only what stands before trained tokens."""
    short, long = trajectory("suaaoaa"), trajectory("suaaoooooooaa")
    settings = Credit(gamma=0.9, boundary=boundary)
    own = values_of(short)[0]
    other = np.concatenate([own[:4], [own[4]], np.full(6, 1e6), own[5:]])
    a, b = (credit(m, [v], settings)[0].advantages[m.segments[0].mask] for m, v in ((short, own), (long, other)))
    np.testing.assert_allclose(a, b, rtol=1e-12)
    assert len(a) == 4


def test_at_the_end_of_an_action_the_next_action_is_looked_at() -> None:
    made = trajectory("uaoa", reward=2.0)
    values = np.array([9.0, 0.5, 9.0, 0.25, 9.0])
    found = credit(made, [values], Credit(gamma=0.9, lambda_policy=0.5))[0].advantages
    last = 2.0 - 0.25
    np.testing.assert_allclose(found, [0, 0.9 * 0.25 - 0.5 + 0.9 * 0.5 * last, 0, last])


def test_lambda_grows_with_the_length() -> None:
    settings = Credit()
    assert settings.policy_lambda(0) == 0.0
    assert settings.policy_lambda(1) == pytest.approx(1 / 3)
    assert settings.policy_lambda(100) == pytest.approx(1 - 1 / 150)
    assert Credit(alpha=0.05).policy_lambda(3) == 0.0  # 1 - 1/0.15 is below zero
    assert Credit(lambda_policy=0.5).policy_lambda(3) == 0.5


def test_the_factor_across_boundaries() -> None:
    made = trajectory("uaam", "caa", "ca", reward=1.0)
    zero = [np.zeros(len(part) + 1) for part in made.segments]
    settings = Credit(lambda_policy=0.8)
    parts = [
        found.advantages[part.mask] for found, part in zip(credit(made, zero, settings), made.segments, strict=True)
    ]
    np.testing.assert_allclose(parts[2], [1.0])
    np.testing.assert_allclose(parts[1], np.array([0.8, 1.0]) * 0.8**1)
    np.testing.assert_allclose(parts[0], np.array([0.64, 0.8, 1.0]) * 0.8**3)
    without = credit(made, zero, replace(settings, boundary="none"))
    np.testing.assert_allclose(without[0].advantages[1:], [0.64, 0.8, 1.0])


def test_with_bootstrap_a_boundary_changes_nothing() -> None:
    """Cut or not, the same states have the same advantages: the value behind the boundary is looked to."""
    whole, cut = trajectory("uaamaaa"), trajectory("uaam", "caaa")
    values = values_of(whole)[0]
    settings = Credit(gamma=0.95, boundary="bootstrap")
    wanted = credit(whole, [values], settings)[0]
    parts = credit(cut, [np.append(values[:4], 77.0), np.append(55.0, values[4:])], settings)
    for name in ("advantages", "targets"):
        found = np.concatenate([getattr(parts[0], name), getattr(parts[1], name)[1:]])
        np.testing.assert_allclose(found, getattr(wanted, name))


@pytest.mark.parametrize("boundary", ["decay", "bootstrap", "none"])
def test_targets_of_the_critic_are_returns(boundary: Any) -> None:
    made = trajectory("uaam", "caoa", reward=0.5)
    for part, found in zip(made.segments, credit(made, values_of(made), Credit(boundary=boundary)), strict=True):
        np.testing.assert_allclose(found.targets[part.mask], 0.5)
        assert not found.targets[~part.mask].any() and not found.advantages[~part.mask].any()


def test_a_frozen_summary_is_no_step() -> None:
    parts = (segment("uaam", frozen="m"), segment("ca"))
    made = Trajectory(name="t", task="t", segments=parts, reward=1.0)
    found = credit(made, [np.zeros(5), np.zeros(3)], Credit(lambda_policy=0.5))
    np.testing.assert_allclose(found[0].advantages, [0, 0.25, 0.5, 0])


def test_a_rollout_that_ran_out_of_room_may_look_to_the_value_behind_it() -> None:
    made = replace(trajectory("ua", reward=0.0), status="truncated")
    values = [np.array([9.0, 0.25, 0.5])]
    assert credit(made, values, Credit())[0].advantages[1] == -0.25
    assert credit(made, values, Credit(truncated="value"))[0].advantages[1] == 0.25
    done = replace(made, status="completed")
    assert credit(done, values, Credit(truncated="value"))[0].advantages[1] == -0.25


def test_whitening_has_a_floor() -> None:
    batch = np.random.default_rng(0).normal(3.0, 2.0, 100)
    np.testing.assert_allclose(whiten(batch, 0.1), credit_reference.whiten(batch.tolist(), 0.1))
    assert whiten(batch, 0.1).std() == pytest.approx(1.0)
    noise = np.array([1e-6, -1e-6, 2e-6])
    assert np.abs(whiten(noise, 0.1)).max() < 1e-4  # without the floor it would be blown up to about 1
    assert whiten(np.zeros(0), 0.1).shape == (0,)


def test_grpo_compares_within_groups() -> None:
    rewards, groups = [1.0, 0.0, 1.0, 1.0, 5.0], ["a", "a", "b", "b", "c"]
    found = group_advantages(rewards, groups, floor=0.1)
    np.testing.assert_allclose(found, [1.0, -1.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(group_advantages(rewards, groups, floor=0.1, divide=False), [0.5, -0.5, 0, 0, 0])


def test_weights_of_tokens() -> None:
    counts = [[2, 0, 6], [1], [0]]
    wanted = {
        "token": [[1 / 9, 0, 1 / 9], [1 / 9], [0]],
        "rollout": [[1 / 16, 0, 1 / 16], [1 / 2], [0]],
        "segment": [[1 / 6, 0, 1 / 18], [1 / 3], [0]],
    }
    for normalise, weights in wanted.items():
        found = token_weights(counts, normalise)  # type: ignore[arg-type]
        assert [w for each in found for w in each] == pytest.approx([w for each in weights for w in each])
        total = sum(w * n for row, ns in zip(found, counts, strict=True) for w, n in zip(row, ns, strict=True))
        assert total == pytest.approx(1.0)
    assert token_weights([[0]], "token") == [[0.0]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"gamma": 1.5}, "gamma is 1.5"), ({"alpha": 0.0}, "alpha is 0.0"), ({"boundary": "cut"}, "boundary is 'cut'")],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Credit(**settings)


def test_values_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="one more than the tokens"):
        credit(trajectory("ua"), [np.zeros(2)], Credit())
