"""An episode without an engine: what is asked, what is recorded of it, and contexts that are compacted."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from indexshare.rl.compaction import Compaction
from indexshare.rl.environment import Environment, Opening, Reply
from indexshare.rl.episode import Episode, Limits
from indexshare.rl.trajectory import Source, Trajectory

SYSTEM, USER, STOP = [1, 2], [3], 9


class Counting(Environment):
    """Shows the number of the turn, 20 and up; earns 0.1 a turn, and 1 at the end."""

    def __init__(self, turns: int) -> None:
        self._turns, self.actions = turns, list[list[int]]()

    def reset(self) -> Opening:
        return Opening(system=SYSTEM, user=USER)

    def step(self, action: Sequence[int]) -> Reply:
        self.actions.append(list(action))
        done = len(self.actions) == self._turns
        tokens = [] if done else [20 + len(self.actions)] * 2
        return Reply(tokens=tokens, reward=1.0 if done else 0.1, done=done, details={"last": len(self.actions)})

    def expert(self) -> list[int]:
        return [STOP]


COMPACTION = Compaction(reserve=10, instruction=(50, 51), resume=(52,), summary_tokens=3, keep=2, most=2)
LIMITS = Limits(context=24, turn_tokens=3, max_turns=20)
COMPACTED = replace(LIMITS, context=34, compaction=COMPACTION)


def play(turns: int, limits: Limits = LIMITS, *, pieces: bool = False) -> tuple[Trajectory, Counting]:
    """Actions of three tokens numbered on from 100, summaries from 200; in single tokens with `pieces`."""
    environment = Counting(turns)
    episode = Episode(7, environment, limits, task="count", name="seven", group="g")
    number = 100
    while not episode.finished:
        room = episode.room
        first = number + 100 * episode.summarising
        tokens = list(range(first, first + min(3, room)))
        number += len(tokens)
        parts = [[token] for token in tokens] if pieces else [tokens]
        for place, part in enumerate(parts):
            episode.receive(part, [-0.5] * len(part), 3, whole=place == len(parts) - 1)
    return episode.trajectory(), environment


def test_what_is_recorded_of_turns() -> None:
    made, environment = play(2)
    (segment,) = made.segments
    assert segment.tokens.tolist() == [1, 2, 3, 100, 101, 102, 21, 21, 103, 104, 105]
    kinds = [Source.SYSTEM] * 2 + [Source.USER] + [Source.ACTION] * 3 + [Source.OBSERVATION] * 2 + [Source.ACTION] * 3
    assert segment.sources.tolist() == kinds
    assert segment.mask.tolist() == [kind is Source.ACTION for kind in kinds]
    assert segment.rewards.tolist() == pytest.approx([0, 0, 0, 0, 0, 0.1, 0, 0, 0, 0, 0])
    assert (made.reward, made.status, made.group) == (1.0, "completed", "g")
    assert made.details == {"last": 2, "turns": 2, "compactions": 0}
    assert environment.actions == [[100, 101, 102], [103, 104, 105]]


def test_an_action_in_pieces_is_one_action() -> None:
    whole, _ = play(3)
    cut, environment = play(3, pieces=True)
    assert cut.segments[0].tokens.tolist() == whole.segments[0].tokens.tolist()
    assert environment.actions[0] == [100, 101, 102]


def test_rollouts_end_where_room_or_turns_end() -> None:
    made, _ = play(50)
    assert made.status == "truncated" and len(made.segments[0]) == 24  # the observation behind it had no room
    assert made.segments[0].sources[-1] == Source.ACTION
    turns, _ = play(50, replace(LIMITS, context=500, max_turns=4))
    assert turns.status == "truncated" and turns.details["turns"] == 4


def test_contexts_are_compacted() -> None:
    made, environment = play(8, COMPACTED)
    first, second, *_ = made.segments
    assert made.details["compactions"] == 2 and len(made.segments) == 3
    # the summary stands at the end of its segment, behind the instruction, and is trained there
    assert first.tokens[-5:-3].tolist() == [50, 51]
    assert first.sources[-3:].tolist() == [Source.SUMMARY] * 3 and first.mask[-3:].all()
    summary = first.tokens[-3:].tolist()
    # the next context: system text, resume, the summary's copy, the last two whole steps; nothing of it trained
    copied = [*environment.actions[3], 24, 24, *environment.actions[4], 25, 25]
    assert first.tokens[18:-5].tolist() == copied
    head = [*SYSTEM, 52, *summary, *copied]
    assert second.tokens[: len(head)].tolist() == head
    assert second.sources[: len(head)].tolist() == [Source.SYSTEM] * 2 + [Source.USER] + [Source.COPIED] * 13
    assert not second.mask[: len(head)].any()
    assert all(len(segment) <= 34 for segment in made.segments)


def test_every_sampled_token_is_trained_once() -> None:
    made, environment = play(8, COMPACTED)
    trained = [int(token) for s in made.segments for token in s.tokens[s.mask]]
    assert len(trained) == len(set(trained))
    assert sorted(token for token in trained if token < 200) == sorted(
        token for action in environment.actions for token in action
    )
    frozen, _ = play(8, replace(COMPACTED, compaction=replace(COMPACTION, train_summary=False)))
    kept = [int(token) for s in frozen.segments for token in s.tokens[s.mask]]
    assert sorted(kept) == sorted(token for token in trained if token < 200)
    assert all((s.versions[s.sources == Source.SUMMARY] == 3).all() for s in frozen.segments)


def test_fewer_steps_are_copied_where_they_do_not_fit() -> None:
    steps = [([10] * 3, [11] * 5), ([12] * 3, [13] * 5)]
    made = COMPACTION.next_context(SYSTEM, [60, 61], steps, 28)
    assert made.tokens == [*SYSTEM, 52, 60, 61, *[12] * 3, *[13] * 5]
    assert COMPACTION.next_context(SYSTEM, [60, 61], steps, 20).tokens == [*SYSTEM, 52, 60, 61]
    assert COMPACTION.next_context(SYSTEM, [60], [], 30).tokens == [*SYSTEM, 52, 60]


def test_after_the_last_compaction_the_context_runs_out() -> None:
    made, _ = play(50, replace(COMPACTED, max_turns=60))
    assert made.status == "truncated" and made.details["compactions"] == 2
    assert np.isfinite(made.reward) and made.reward == 0.0


@pytest.mark.parametrize("changes", [{"reserve": 4}, {"keep": -1}, {"most": 0}, {"summary_tokens": 0}])
def test_compactions_that_cannot_work_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected a reserve of at least"):
        replace(COMPACTION, **changes)
    with pytest.raises(ValueError, match="expected at least 1 of context"):
        Limits(context=0, turn_tokens=1)
