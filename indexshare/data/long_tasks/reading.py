"""Questions over many short documents: a fact from one of them, and a fact that takes two."""

from __future__ import annotations

import random

from indexshare.data.long_tasks.base import Item, LongTask
from indexshare.data.long_tasks.registry import register_long_task
from indexshare.data.long_tasks.words import COUNTRIES, TRADES, filler, people, places

_SENTENCES = 3  # of filler in a document, as long as there are names for more documents
_MOST = 10_000  # documents


def _document(number: int, title: str, facts: str, sentences: int, rng: random.Random) -> str:
    return f"Document {number} ({title}): {facts} {' '.join(filler(rng, sentences))}"


def _lives(rng: random.Random, count: int) -> list[dict[str, str]]:
    names, towns = people(rng, count), places(rng, count)
    return [
        {"name": name, "town": town, "trade": rng.choice(TRADES), "year": str(rng.randrange(1700, 1990))}
        for name, town in zip(names, towns, strict=True)
    ]


def _birth(life: dict[str, str]) -> str:
    return f"{life['name']}, a {life['trade']}, was born in {life['town']}"


def _sentences(size: int) -> int:
    """Of filler in each document: more of them where there are no more documents."""
    return max(_SENTENCES, _SENTENCES * size // _MOST)


def question_answering(rng: random.Random, size: int) -> Item:
    """Where somebody was born, among documents about other people."""
    lives = _lives(rng, min(size, _MOST))
    asked, sentences = rng.choice(lives), _sentences(size)
    documents = [
        _document(n, life["name"], f"{_birth(life)} in {life['year']}.", sentences, rng)
        for n, life in enumerate(lives, 1)
    ]
    return Item(
        context="\n".join(documents), question=f"In which town was {asked['name']} born?",
        opening=f"{asked['name']} was born in", answers=(asked["town"],),
    )  # fmt: skip


def multi_document(rng: random.Random, size: int) -> Item:
    """In which country somebody was born: one document names the town, another one the town's country."""
    lives = _lives(rng, max(2, min(size, _MOST) // 2))
    asked = rng.choice(lives)
    countries = {life["town"]: rng.choice(COUNTRIES) for life in lives}
    facts = [(life["name"], f"{_birth(life)}.") for life in lives]
    facts += [(town, f"The town of {town} lies in {country}.") for town, country in countries.items()]
    rng.shuffle(facts)
    documents = [_document(n, title, fact, _sentences(size), rng) for n, (title, fact) in enumerate(facts, 1)]
    return Item(
        context="\n".join(documents), question=f"In which country was {asked['name']} born?",
        opening=f"{asked['name']} was born in the country of", answers=(countries[asked["town"]],),
    )  # fmt: skip


register_long_task(
    LongTask(name="qa", says="a fact from one of many documents", make=question_answering, least=2, answer_tokens=32,
             scoring="any")
)  # fmt: skip
register_long_task(
    LongTask(name="multi-document", says="a fact that takes two of many documents", make=multi_document, least=4,
             answer_tokens=32, scoring="any")
)  # fmt: skip
