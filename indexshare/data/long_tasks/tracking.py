"""Variables that take each other's values, spread over a text: which of them hold a value in the end?"""

from __future__ import annotations

import random
import string
from itertools import pairwise

from indexshare.data.long_tasks.base import Item, LongTask, hide
from indexshare.data.long_tasks.registry import register_long_task
from indexshare.data.long_tasks.words import filler, numbers

_CHAINS, _HOPS = 2, 4


def variable_tracking(rng: random.Random, size: int) -> Item:
    """Chains `A = value`, `B = A`, ... in order; all names of one chain are asked for by its value."""
    count = _CHAINS * (_HOPS + 1)
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(rng.choice(string.ascii_uppercase) for _ in range(4))] = None
    ordered, values = list(names), numbers(rng, _CHAINS, digits=5)
    chains = [ordered[i * (_HOPS + 1) : (i + 1) * (_HOPS + 1)] for i in range(_CHAINS)]
    steps = []
    for chain, value in zip(chains, values, strict=True):
        steps.append([f"VAR {chain[0]} = {value}.", *(f"VAR {b} = VAR {a}." for a, b in pairwise(chain))])
    facts: list[str] = []
    waiting = [list(part) for part in steps]
    while any(waiting):
        part = rng.choice([part for part in waiting if part])
        facts.append(part.pop(0))
    question = f"Which {_HOPS + 1} variables have the value {values[0]} in the end?"
    return Item(
        context=hide(rng, facts, filler(rng, size)), question=question,
        opening=f"The {_HOPS + 1} variables with the value {values[0]} are", answers=tuple(chains[0]),
    )  # fmt: skip


register_long_task(
    LongTask(name="tracking", says="variables that take each other's values", make=variable_tracking, least=16)
)
