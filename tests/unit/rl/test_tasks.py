"""The tasks: experts earn the reward, wrong actions do not, held-out problems are others, and keys go out of sight."""

import pytest

from indexshare.rl.demonstrations import demonstration
from indexshare.rl.environment import Task, byte_tokenizer
from indexshare.rl.episode import Limits
from indexshare.rl.tasks import Addition, MemoryChain, Sorting
from indexshare.rl.trajectory import Source

TOKENIZER = byte_tokenizer()
TASKS: list[Task] = [Sorting(TOKENIZER), Sorting(TOKENIZER, 3, "xyz"), Addition(TOKENIZER), Addition(TOKENIZER, 3)]


@pytest.mark.parametrize("task", TASKS, ids=lambda t: f"{t.name} {t.turn_tokens}")
def test_the_expert_earns_the_reward(task: Task) -> None:
    for number in range(20):
        environment = task.environment(number)
        environment.reset()
        action = environment.expert()
        assert len(action) <= task.turn_tokens and action[-1] in task.stop_ids
        reply = environment.step(action)
        assert reply.done and reply.reward == 1.0
        assert task.environment(number).step(action[:-1]).reward == 0.0, "an answer that does not end is none"
        assert task.environment(number).step([*task.spell("?"), *task.stop_ids]).reward == 0.0


def test_what_the_answers_are() -> None:
    sorting, addition = Sorting(TOKENIZER), Addition(TOKENIZER)
    assert sorting.solution("fbadce>") == "abcdef" and addition.solution("27+58=") == "58"
    assert addition.solution("99+99=") == "891"


@pytest.mark.parametrize("task", TASKS[:1] + TASKS[2:3], ids=lambda t: t.name)
def test_held_out_problems_are_never_trained_on(task: Task) -> None:
    train = {tuple(task.environment(n).reset().user) for n in range(600)}
    held_out = {tuple(task.environment(n, held_out=True).reset().user) for n in range(100)}
    assert not train & held_out and len(held_out) > 50
    assert [*task.environment(3).reset().user] == [*task.environment(3).reset().user]


def memory_limits(task: MemoryChain, context: int | None = None) -> Limits:
    compaction = task.compaction
    return Limits(
        context=context or task.context, turn_tokens=task.turn_tokens, max_turns=task.max_turns, compaction=compaction
    )


@pytest.mark.parametrize(("digits", "tail"), [(2, 8), (3, 4), (1, 2)])
def test_the_key_is_out_of_sight_behind_the_first_compaction(digits: int, tail: int) -> None:
    task = MemoryChain(TOKENIZER, digits=digits, tail=tail, keeping=1.0)
    made = demonstration(task, memory_limits(task), 5)
    assert made.reward == 1.0 and made.details["copied"] == 1.0
    assert len(made.segments) == 4 and made.status == "completed"
    key = TOKENIZER.decode(made.segments[0].tokens[:digits].tolist())
    for segment in made.segments[1:]:
        seen = segment.tokens[segment.sources != Source.COPIED][: -digits - 2]
        assert not set(TOKENIZER.decode(seen.tolist())) & set("0123456789")
        copied = segment.tokens[segment.sources == Source.COPIED].tolist()
        assert TOKENIZER.decode(copied, skip_special=True).startswith(key)
    assert min(segment.trained for segment in made.segments) >= 2 * tail, "long tails behind every boundary"


def test_demonstrations_keep_the_key_as_often_as_wanted() -> None:
    never, often = (MemoryChain(TOKENIZER, tail=2, keeping=part) for part in (0.0, 0.5))
    kept = [_kept(often, n) for n in range(100)]
    assert 30 < sum(kept) < 70 and sum(_kept(never, n) for n in range(100)) < 10


def _kept(task: MemoryChain, number: int) -> bool:
    first = demonstration(task, memory_limits(task), number).segments[0]
    summary = first.tokens[first.sources == Source.SUMMARY].tolist()
    return summary[:2] == first.tokens[:2].tolist()


def test_without_compaction_the_key_stays_in_sight() -> None:
    task = MemoryChain(TOKENIZER, tail=4)
    made = demonstration(task, memory_limits(task, context=200), 1)
    assert len(made.segments) == 1 and made.reward == 1.0


def test_settings_that_mean_nothing_are_refused() -> None:
    for make in (
        lambda: Sorting(TOKENIZER, 0), lambda: Sorting(TOKENIZER, 2, "aa"), lambda: Addition(TOKENIZER, 0),
        lambda: MemoryChain(TOKENIZER, keeping=2.0),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected at least"):
            make()
