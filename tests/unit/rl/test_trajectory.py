"""Trajectories: what a segment refuses, how one grows, what is counted, and files that give back the same."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from indexshare.rl.files import read_trajectories, write_trajectories
from indexshare.rl.trajectory import NOT_SAMPLED, SegmentBuilder, Source, Trajectory
from tests.unit.rl.trajectories import segment, trajectory


def test_a_segment_grows_token_by_token() -> None:
    builder = SegmentBuilder()
    builder.add([5, 6], Source.USER)
    builder.sample([7, 8], [-0.5, -1.0], 3, Source.ACTION)
    builder.earn(0.25)
    builder.add([9], Source.OBSERVATION)
    builder.sample([1], [-2.0], 4, Source.SUMMARY, trained=False)
    made = builder.build()
    assert made.tokens.tolist() == [5, 6, 7, 8, 9, 1]
    assert made.mask.tolist() == [False, False, True, True, False, False]
    assert made.versions.tolist() == [NOT_SAMPLED, NOT_SAMPLED, 3, 3, NOT_SAMPLED, 4]
    assert made.rewards.tolist() == [0, 0, 0, 0.25, 0, 0]
    assert made.logprobs.tolist() == [0, 0, -0.5, -1.0, 0, -2.0]
    assert made.trained == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask": np.array([False, True, False])}, "token 1 is masked as trained and is OBSERVATION"),
        ({"mask": np.array([True, False, False])}, "token 0 is masked as trained"),
        ({"tokens": np.array([1, 2])}, "expected one value per token"),
        ({"versions": np.array([-1, -1, -1])}, "versions must be 0 or more where tokens were sampled"),
        ({"versions": np.array([2, -1, 0])}, "and -1 elsewhere"),
        ({"logprobs": np.array([0.0, 0.0, np.nan])}, "finite"),
        ({"logprobs": np.array([0.0, 0.0, 0.5])}, "at most 0"),
        ({"rewards": np.array([0.0, 0.0, np.inf])}, "rewards must be finite"),
        ({"selection": np.zeros((2, 1, 4))}, "selection has shape"),
        ({"columns": {"advantage": np.zeros(2)}}, "advantage [2]"),
    ],
)
def test_a_segment_refuses_what_cannot_be(changes: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("[", r"\[").replace("]", r"\]")):
        replace(segment("uoa"), **changes)


def test_a_trajectory_needs_segments_and_a_finite_reward() -> None:
    with pytest.raises(ValueError, match="no segments"):
        Trajectory(name="x", task="t", segments=(), reward=0.0)
    with pytest.raises(ValueError, match="reward nan"):
        trajectory("ua", reward=float("nan"))


def test_what_is_counted_of_a_trajectory() -> None:
    parts = (segment("suaaom", version=2), segment("sccua", version=5))
    made = Trajectory(name="x", task="t", segments=parts, reward=0.5)
    assert made.trained == 4 and made.versions == (2, 5)
    assert made.staleness(6) == 4
    assert Trajectory(name="x", task="t", segments=(segment("uo"),), reward=0.5).staleness(6) == 0
    earned = replace(parts[0], rewards=np.array([0, 0, 0.25, 0, 0, 0]))
    assert replace(made, segments=(earned,)).total_reward == 0.75


def test_files_give_back_the_same(tmp_path: Path) -> None:
    first = trajectory("suaaom", "sccua", name="one", reward=0.5)
    chosen = replace(segment("ua"), selection=np.arange(12).reshape(2, 2, 3))
    second = Trajectory(name="two", task="t", segments=(chosen,), reward=0.0, status="truncated", details={"n": 3})
    lit = replace(first, segments=(first.segments[0].with_columns(advantage=np.arange(6)), first.segments[1]))
    file = write_trajectories(tmp_path / "new" / "a.safetensors", [lit, second], {7: "x"})
    read, texts = read_trajectories(file)
    assert texts == {7: "x"} and [each.name for each in read] == ["one", "two"]
    assert [p.name for p in file.parent.iterdir()] == ["a.safetensors"]
    for old, new in zip([lit, second], read, strict=True):
        assert (old.task, old.reward, old.status, old.group, dict(old.details)) == (
            new.task, new.reward, new.status, new.group, dict(new.details),
        )  # fmt: skip
        for a, b in zip(old.segments, new.segments, strict=True):
            for name in ("tokens", "sources", "mask", "logprobs", "versions", "rewards"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            assert a.columns.keys() == b.columns.keys()
    np.testing.assert_array_equal(read[0].segments[0].columns["advantage"], np.arange(6))
    np.testing.assert_array_equal(read[1].segments[0].selection, chosen.selection)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_trajectories(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="no trajectories"):
        write_trajectories(tmp_path / "a.safetensors", [])
    file = tmp_path / "b.safetensors"
    file.write_bytes(b"not a file of tensors")
    with pytest.raises(ValueError, match="damaged"):
        read_trajectories(file)
    whole = write_trajectories(tmp_path / "c.safetensors", [trajectory("ua")]).read_bytes()
    file.write_bytes(whole[: len(whole) - 8])
    with pytest.raises(ValueError, match="damaged"):
        read_trajectories(file)


def test_a_write_that_fails_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_trajectories(tmp_path / "a.safetensors", [trajectory("ua", name="old")])

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("indexshare.rl.files.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_trajectories(file, [trajectory("ua", name="new")])
    assert read_trajectories(file)[0][0].name == "old"
    assert len(list(tmp_path.iterdir())) == 1
