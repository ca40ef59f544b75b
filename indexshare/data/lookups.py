"""Generated lookups for long rows: exact recall among entries that look alike, many questions for each text.

What the tasks of `tasks.py` lack when tables grow long (`docs/LOG.md`, 2026-11-21): tables that fill most of a row,
keys that differ in one word or in a number only, values of more digits than a key can be guessed by, lookups of
lookups, and lengths from a few hundred tokens to the whole row. Each text is a function of (seed, index) and its size.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from indexshare.data.tasks import NOUNS, VERBS, copying, filler, unique_names, variable_tracking

_SHORTEST = 256  # tokens of a text, where the row has so many
_WHOLE = 0.5  # part of the texts that fill their row


def lookup_size(rng: random.Random, room: int) -> int:
    """Tokens of the next text in a row with `room` left: all of it, or log-uniform from `_SHORTEST` up."""
    if room <= _SHORTEST or rng.random() < _WHOLE:
        return room
    return round(math.exp(rng.uniform(math.log(_SHORTEST), math.log(room))))


def close_names(rng: random.Random, count: int) -> list[str]:
    """Different names of few words, so that most share all but one word or number with another."""
    verbs, nouns, numbers = 3, 4, rng.choice((1, 1, 8))
    while verbs * nouns * nouns * numbers < 2 * count:
        if verbs == len(VERBS) and nouns == len(NOUNS):
            numbers *= 2
        verbs, nouns = min(verbs + 1, len(VERBS)), min(nouns + 2, len(NOUNS))
    some_verbs, some_nouns = rng.sample(VERBS, verbs), rng.sample(NOUNS, nouns)
    names: dict[str, None] = {}
    while len(names) < count:
        name = f"{rng.choice(some_verbs)}_{rng.choice(some_nouns)}_{rng.choice(some_nouns)}"
        names[name if numbers == 1 else f"{name}_{rng.randrange(numbers)}"] = None
    return list(names)


def _names(rng: random.Random, count: int) -> list[str]:
    return close_names(rng, count) if rng.random() < 0.5 else unique_names(rng, count)


def _number(rng: random.Random, digits: int) -> int:
    return rng.randrange(10 ** (digits - 1), 10**digits)


def recall(rng: random.Random, num_chars: int) -> str:
    """A long table of settings, then some of the keys, or all of them, in another order."""
    digits, part = rng.choice((4, 4, 5, 6, 8)), rng.uniform(0.35, 0.85)
    count = max(2, int(num_chars * part) // (27 + digits))
    pairs = [(name, _number(rng, digits)) for name in _names(rng, count)]
    table = "".join(f"    '{key}': {value},\n" for key, value in pairs)
    asked = rng.sample(pairs, min(count, max(1, (num_chars - len(table)) // (40 + digits))))
    questions = "".join(f"assert settings['{key}'] == {value}\n" for key, value in asked)
    return "settings = {\n" + table + "}\n\n" + questions


def two_hops(rng: random.Random, num_chars: int) -> str:
    """A table of names for keys of a second table; what is asked goes through both."""
    part = rng.uniform(0.4, 0.8)
    count = max(2, int(num_chars * part) // 78)
    names = _names(rng, 2 * count)
    keys, inner = names[:count], names[count:]
    pairs = [(key, _number(rng, 4)) for key in inner]
    values, targets = dict(pairs), dict(zip(keys, rng.sample(inner, count), strict=True))
    aliases = "".join(f"    '{key}': '{target}',\n" for key, target in targets.items())
    table = "".join(f"    '{key}': {value},\n" for key, value in pairs)
    tables = [f"aliases = {{\n{aliases}}}\n\n", f"settings = {{\n{table}}}\n\n"]
    rng.shuffle(tables)
    asked = rng.sample(keys, min(count, max(1, (num_chars - len(aliases) - len(table)) // 56)))
    return "".join(tables) + "".join(f"assert settings[aliases['{k}']] == {values[targets[k]]}\n" for k in asked)


def needles(rng: random.Random, num_chars: int) -> str:
    """Constants with names that look alike, spread over filler code; each is asked for later, some at once."""
    count = rng.randint(3, max(3, num_chars // 400))
    constants = [(name.upper(), _number(rng, 5)) for name in _names(rng, count)]
    code = max(0, num_chars - 75 * count)
    cuts = sorted(rng.randint(0, code) for _ in constants)
    waiting = list[tuple[str, int]]()
    text = ""
    for (name, value), before, cut in zip(constants, [0, *cuts], cuts, strict=False):
        text += filler(rng, cut - before) + f"{name} = {value}\n"
        waiting.append((name, value))
        if rng.random() < 0.3:
            asked, number = waiting.pop(rng.randrange(len(waiting)))
            text += filler(rng, 30) + f"assert {asked} == {number}\n"
    rng.shuffle(waiting)
    return text + filler(rng, code - cuts[-1]) + "".join(f"assert {name} == {value}\n" for name, value in waiting)


LOOKUPS: dict[str, Callable[[random.Random, int], str]] = {
    "recall": recall,
    "two_hops": two_hops,
    "needles": needles,
    "copying": copying,
    "variable_tracking": variable_tracking,
}
_WEIGHTS = {"recall": 4, "two_hops": 1, "needles": 2, "copying": 1, "variable_tracking": 1}


def choose_lookup(seed: int, index: int) -> tuple[str, random.Random]:
    """The task number `index` of a stream, and the source of its random choices."""
    rng = random.Random(f"lookup/{seed}/{index}")
    return rng.choices(list(LOOKUPS), [_WEIGHTS[name] for name in LOOKUPS])[0], rng
