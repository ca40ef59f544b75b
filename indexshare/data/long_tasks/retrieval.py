"""Numbers hidden in a text: one of many that look alike, several of one label, several labels at once."""

from __future__ import annotations

import random

from indexshare.data.long_tasks.base import Item, LongTask, hide
from indexshare.data.long_tasks.registry import register_long_task
from indexshare.data.long_tasks.words import filler, labels, numbers

_HIDDEN = 4


def _fact(label: str, value: str) -> str:
    return f"The number of the {label} is {value}."


def _listed(items: list[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"


def multi_key(rng: random.Random, size: int) -> Item:
    """One number of a label is asked for; other labels that share a word with it have numbers too."""
    names, values = labels(rng, 1 + 3 * _HIDDEN), numbers(rng, 1 + 3 * _HIDDEN)
    facts = [_fact(*pair) for pair in zip(names, values, strict=True)]
    rng.shuffle(facts)
    return Item(
        context=hide(rng, facts, filler(rng, size)), question=f"What is the number of the {names[0]}?",
        opening=f"The number of the {names[0]} is", answers=(values[0],),
    )  # fmt: skip


def multi_value(rng: random.Random, size: int) -> Item:
    """A label with several numbers, all of them asked for, among numbers of other labels."""
    names, values = labels(rng, 1 + _HIDDEN), numbers(rng, 2 * _HIDDEN)
    own, others = values[:_HIDDEN], values[_HIDDEN:]
    facts = [f"One number of the {names[0]} is {value}." for value in own]
    facts += [f"One number of the {name} is {value}." for name, value in zip(names[1:], others, strict=True)]
    rng.shuffle(facts)
    return Item(
        context=hide(rng, facts, filler(rng, size)), question=f"Which {_HIDDEN} numbers has the {names[0]}?",
        opening=f"The {_HIDDEN} numbers of the {names[0]} are", answers=tuple(own),
    )  # fmt: skip


def multi_query(rng: random.Random, size: int) -> Item:
    """The numbers of several labels are asked for in one question."""
    names, values = labels(rng, 2 * _HIDDEN), numbers(rng, 2 * _HIDDEN)
    facts = [_fact(*pair) for pair in zip(names, values, strict=True)]
    rng.shuffle(facts)
    asked = _listed([f"the {name}" for name in names[:_HIDDEN]])
    return Item(
        context=hide(rng, facts, filler(rng, size)), question=f"What are the numbers of {asked}?",
        opening=f"The numbers of {asked} are", answers=tuple(values[:_HIDDEN]),
    )  # fmt: skip


register_long_task(
    LongTask(name="multi-key", says="one number among many that look alike", make=multi_key, least=16, answer_tokens=24)
)
register_long_task(LongTask(name="multi-value", says="all numbers of one label", make=multi_value, least=16))
register_long_task(LongTask(name="multi-query", says="the numbers of four labels", make=multi_query, least=16))
