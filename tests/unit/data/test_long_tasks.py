"""Long tasks: the answer is in the text, the length is met, everything follows from the seed, and scores are fair."""

import random
import re

import pytest

from indexshare.data.long_tasks import fit_item, long_task, long_tasks, score

TASKS = sorted(long_tasks())


def words(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [700, 5000])
def test_an_item_is_nearly_as_long_as_asked_and_never_longer(name: str, length: int) -> None:
    task = long_task(name)
    for index in range(3):
        size = words(fit_item(task, seed=1, index=index, length=length, count=words).prompt("base"))
        assert 0.8 * (length - task.answer_tokens) - 40 <= size <= length - task.answer_tokens


@pytest.mark.parametrize("name", TASKS)
def test_items_follow_from_seed_and_index(name: str) -> None:
    task = long_task(name)
    items = [fit_item(task, seed=s, index=i, length=800, count=words) for s, i in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert items[0] == items[1]
    assert len({item.context for item in items}) == 3


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_in_the_text_and_not_in_what_is_asked(name: str) -> None:
    task = long_task(name)
    for index in range(5):
        item = fit_item(task, seed=2, index=index, length=1500, count=words)
        for answer in item.answers:
            assert re.search(rf"\b{answer}\b", item.context)
        assert score(task, item, item.question + " " + item.opening) == 0
        assert score(task, item, "It is " + ", ".join(item.answers).lower() + ".") == 1
        assert score(task, item, "") == 0


def test_part_of_the_answers_is_part_of_the_score() -> None:
    item = long_task("multi-value").make(random.Random(0), 40)
    assert score(long_task("multi-value"), item, " and ".join(item.answers[:3])) == 0.75
    assert score(long_task("multi-value"), item, "9" + item.answers[0]) == 0  # whole words only


def test_the_two_kinds_of_counting_have_one_right_answer() -> None:
    for index in range(20):
        item = fit_item(long_task("frequent-words"), seed=0, index=index, length=400, count=words)
        listed = item.context.rstrip(".").split(": ")[1].split()
        counts = sorted((listed.count(word) for word in set(listed)), reverse=True)
        assert min(listed.count(word) for word in item.answers) == counts[2] > counts[3]


def test_tracked_variables_hold_the_value() -> None:
    item = fit_item(long_task("tracking"), seed=0, index=0, length=600, count=words)
    values: dict[str, str] = {}
    for name, source in re.findall(r"VAR ([A-Z]{4}) = (?:VAR )?(\w+)\.", item.context):
        values[name] = values.get(source, source)
    (asked,) = re.findall(r"\d{5}", item.question)
    assert {name for name, value in values.items() if value == asked} == set(item.answers)


def test_a_length_without_room_and_an_unknown_task() -> None:
    with pytest.raises(ValueError, match=r"a length is 40 tokens; qa needs at least"):
        fit_item(long_task("qa"), seed=0, index=0, length=40, count=words)
    with pytest.raises(ValueError, match="did you mean 'multi-key'"):
        long_task("multikey")


@pytest.mark.parametrize("name", TASKS)
def test_more_units_are_a_longer_text_however_many(name: str) -> None:
    """A million tokens take 10,000 to 200,000 of them: there must be names for all, or longer documents."""
    units = 90_000 if name == "common-words" else 20_000
    sizes = [len(long_task(name).make(random.Random(0), n).context) for n in (units, 2 * units)]
    assert sizes[1] > 1.7 * sizes[0]


@pytest.mark.parametrize("size", [40, 100, 450, 700, 5000])
def test_common_words_stand_among_rarer_ones(size: int) -> None:
    item = long_task("common-words").make(random.Random(0), size)
    listed = re.findall(r"\d+\. (\w+)", item.context)
    counts = {word: listed.count(word) for word in listed}
    others = [count for word, count in counts.items() if word not in item.answers]
    assert others and max(others) * 2 <= min(counts[word] for word in item.answers)
    assert 0.9 * size <= len(listed) <= size
