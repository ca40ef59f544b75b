"""Words and sentences that long tasks are made of."""

from __future__ import annotations

import random
from functools import cache
from itertools import product

THINGS = (
    "lantern", "harbour", "violin", "meadow", "compass", "kettle", "orchard", "ladder", "window", "garden", "bridge",
    "basket", "candle", "river", "mirror", "blanket", "hammer", "teapot", "staircase", "chimney", "anchor", "pillow",
    "wagon", "curtain", "valley", "fountain", "saddle", "cupboard", "island", "barrel",
)  # fmt: skip
QUALITIES = (
    "quiet", "narrow", "golden", "ancient", "crooked", "bright", "wooden", "heavy", "distant", "gentle", "dusty",
    "hollow", "frozen", "plain", "velvet", "copper", "broken", "early", "silent", "northern",
)  # fmt: skip
ACTIONS = (
    "stood beside", "was painted after", "reminded everyone of", "was sold with", "leaned against", "was older than",
    "lay behind", "belonged to", "was moved near", "looked like", "was carried past", "was repaired before",
)  # fmt: skip
FIRST_NAMES = (
    "Ada", "Boris", "Clara", "Dmitri", "Elena", "Felix", "Greta", "Hugo", "Irene", "Jonas", "Katja", "Liam", "Marta",
    "Nils", "Olga", "Pavel", "Rosa", "Stefan", "Tilda", "Viktor",
)  # fmt: skip
_STARTS = (
    "Brel",
    "Cas",
    "Dor",
    "Eln",
    "Far",
    "Gol",
    "Hark",
    "Ist",
    "Kel",
    "Lam",
    "Mor",
    "Nor",
    "Ost",
    "Pell",
    "Rav",
    "Sel",
)
_MIDDLES = ("a", "e", "i", "o", "u", "en", "ar", "or", "in", "al")
_PLACE_ENDS = ("ton", "burg", "ford", "ville", "mouth", "stad", "field", "haven")
_NAME_ENDS = ("son", "mann", "ez", "ova", "sky", "berg", "ini", "ard")
TRADES = (
    "baker", "surveyor", "pilot", "botanist", "printer", "glassblower", "teacher", "carpenter", "violinist", "chemist",
    "mason", "beekeeper",
)  # fmt: skip
COUNTRIES = ("Ardenia", "Belmark", "Corvania", "Drennland", "Estovia", "Falmoria", "Gretonia", "Halvia")
_LABELS = [f"{quality} {thing}" for quality, thing in product(QUALITIES, THINGS)]


def filler(rng: random.Random, count: int) -> list[str]:
    """`count` sentences without numbers or names."""
    return [
        f"The {rng.choice(QUALITIES)} {rng.choice(THINGS)} {rng.choice(ACTIONS)} the {rng.choice(QUALITIES)} "
        f"{rng.choice(THINGS)}."
        for _ in range(count)
    ]


def labels(rng: random.Random, count: int) -> list[str]:
    """Different labels such as `copper lantern`."""
    return rng.sample(_LABELS, count)


def numbers(rng: random.Random, count: int, digits: int = 6) -> list[str]:
    """Different numbers of so many digits."""
    return [str(value) for value in rng.sample(range(10 ** (digits - 1), 10**digits), count)]


def places(rng: random.Random, count: int) -> list[str]:
    """Different names of towns that do not exist."""
    return rng.sample(_places(), count)


def people(rng: random.Random, count: int) -> list[str]:
    """Different names of people who do not exist."""
    return rng.sample(_people(), count)


@cache
def _places() -> list[str]:
    return ["".join(parts) for parts in product(_STARTS, _MIDDLES, _MIDDLES, _PLACE_ENDS)]


@cache
def _people() -> list[str]:
    surnames = ["".join(parts) for parts in product(_STARTS, _MIDDLES, _NAME_ENDS)]
    return [f"{first} {last}" for first, last in product(FIRST_NAMES, surnames)]


def coined(rng: random.Random, count: int) -> list[str]:
    """Different words that do not exist, in small letters."""
    syllables = ("ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "zu")
    most = 4 if count < 10_000 else 6  # there are 54,000 words of up to four syllables
    words: dict[str, None] = {}
    while len(words) < count:
        words["".join(rng.choice(syllables) for _ in range(rng.randint(2, most)))] = None
    return list(words)
