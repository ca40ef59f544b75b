"""Generated retrieval tasks that look like Python: recall, needles, copying and variable tracking.

Each text is a function of (seed, index) alone, so a stream of them is resumed by its index.
"""

from __future__ import annotations

import random
from collections.abc import Callable

NOUNS = [
    "cache",
    "node",
    "path",
    "line",
    "token",
    "buffer",
    "index",
    "value",
    "parser",
    "reader",
    "writer",
    "frame",
    "event",
    "queue",
    "task",
    "state",
    "name",
    "field",
    "header",
    "block",
    "stream",
    "socket",
    "handler",
    "module",
    "record",
    "table",
    "column",
    "row",
    "entry",
    "option",
    "flag",
]
VERBS = [
    "read",
    "write",
    "load",
    "save",
    "open",
    "close",
    "find",
    "make",
    "push",
    "pop",
    "copy",
    "send",
    "parse",
    "build",
    "check",
    "merge",
    "split",
]
_FILLER = (
    "{a}_{b} = {v}_{a}({b})",
    "if {a} is None:\n    {a} = {v}_{b}()",
    "for {a} in {b}_list:\n    {v}_{a}({a}, {n})",
    "self.{a} = {a}.{v}({n})",
    "assert {v}_{a}({b}) == {n}",
    "def {v}_{a}({b}, {a}={n}):\n    return {b}.{v}({a})",
    "# {v} the {a} before the {b}",
    "return {v}_{b}({a}, {n})",
    "{a}s.append({b}[{n}])",
)
_CHARS_PER_TOKEN = 2.2  # generated names and digits cost more tokens than ordinary code


def retrieval_text(seed: int, index: int, num_tokens: int) -> str:
    """One generated text of about `num_tokens` tokens (4K-vocabulary tokens), with its answers inside."""
    rng = random.Random(f"{seed}/{index}")
    task = rng.choice(_TASKS)
    return task(rng, int(num_tokens * _CHARS_PER_TOKEN))


def _name(rng: random.Random) -> str:
    return f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}_{rng.choice(NOUNS)}"


def filler(rng: random.Random, num_chars: int) -> str:
    """Lines of code without meaning, at least `num_chars` characters, whole statements, a line break at the end."""
    parts: list[str] = []
    while num_chars > 0:
        a, b = rng.sample(NOUNS, 2)
        line = rng.choice(_FILLER).format(a=a, b=b, v=rng.choice(VERBS), n=rng.randrange(100))
        parts.append(line)
        num_chars -= len(line) + 1
    return "\n".join(parts) + "\n"


def unique_names(rng: random.Random, count: int) -> list[str]:
    """Names of functions or settings, all different."""
    names: dict[str, None] = {}
    while len(names) < count:
        names[_name(rng) + (f"_{rng.randrange(100)}" if len(names) > 400 else "")] = None
    return list(names)


def key_value_recall(rng: random.Random, num_chars: int) -> str:
    """A table of settings, then every key asked for again in another order."""
    count = max(2, num_chars // 75)
    pairs = [(name, rng.randrange(1000, 10_000)) for name in unique_names(rng, count)]
    table = "".join(f"    '{key}': {value},\n" for key, value in pairs)
    rng.shuffle(pairs)
    asked = "".join(f"assert settings['{key}'] == {value}\n" for key, value in pairs)
    return "settings = {\n" + table + "}\n\n" + asked


def needle(rng: random.Random, num_chars: int) -> str:
    """A few constants far apart in filler code, asked for at the end and in between."""
    count = rng.randint(2, 6)
    names = [name.upper() for name in unique_names(rng, count)]
    values = [rng.randrange(10_000, 100_000) for _ in names]
    share = max(0, num_chars - 90 * count) // (count + 1)
    text = filler(rng, share)
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        back = rng.randint(0, i)
        text += f"{name} = {value}\n" + filler(rng, share)
        text += f"assert {names[back]} == {values[back]}\n"
    order = rng.sample(range(count), count)
    return text + "".join(f"assert {names[i]} == {values[i]}\n" for i in order)


def copying(rng: random.Random, num_chars: int) -> str:
    """A block of code, other code, then the block again, word for word."""
    part = rng.uniform(0.2, 0.45)
    block = "".join(f"    {_name(rng)}({rng.randrange(1000)})\n" for _ in range(max(1, int(num_chars * part) // 30)))
    body = filler(rng, int(num_chars * (1 - 2 * part)) - 60)
    name = _name(rng)
    return f"def {name}():\n{block}\n{body}\n# the same steps again\ndef {name}():\n{block}"


def variable_tracking(rng: random.Random, num_chars: int) -> str:
    """Chains of assignments x = y = ... = number with filler between, each end asked for its number."""
    chains = rng.randint(2, 5)
    hops = rng.randint(2, 5)
    names = unique_names(rng, chains * hops)
    values = [rng.randrange(10_000, 100_000) for _ in range(chains)]
    share = max(0, num_chars - 45 * chains * (hops + 1)) // (chains * hops)
    text = ""
    for hop in range(hops):
        for chain in rng.sample(range(chains), chains):
            name = names[chain * hops + hop]
            source = str(values[chain]) if hop == 0 else names[chain * hops + hop - 1]
            text += f"{name} = {source}\n" + filler(rng, share)
    ends = [(names[c * hops + rng.randrange(hops)], values[c]) for c in range(chains)]
    rng.shuffle(ends)
    return text + "".join(f"assert {name} == {value}\n" for name, value in ends)


_TASKS: tuple[Callable[[random.Random, int], str], ...] = (
    key_value_recall,
    key_value_recall,
    needle,
    copying,
    variable_tracking,
)
