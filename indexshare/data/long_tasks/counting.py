"""Words of a list to be counted: the most common ones, and the most frequent ones of a skewed distribution."""

from __future__ import annotations

import random

from indexshare.data.long_tasks.base import Item, LongTask
from indexshare.data.long_tasks.registry import register_long_task
from indexshare.data.long_tasks.words import coined

_COMMON, _OFTEN, _RARELY = 10, 30, 3
_FREQUENT, _EXPONENT = 3, 2.0


def common_words(rng: random.Random, size: int) -> Item:
    """Ten words stand ten times as often as all others in a numbered list; in one of a few hundred, at least twice."""
    often = min(_OFTEN, max(2, size // (2 * _COMMON)))  # in a short list half of it is theirs
    rarely = max(1, often * _RARELY // _OFTEN)
    others = max(1, (size - _COMMON * often) // rarely)
    words = coined(rng, _COMMON + others)
    listed = [word for word in words[:_COMMON] for _ in range(often)]
    listed += [word for word in words[_COMMON:] for _ in range(rarely)]
    rng.shuffle(listed)
    context = " ".join(f"{number}. {word}" for number, word in enumerate(listed, 1))
    return Item(
        context=f"A numbered list of words, in which {_COMMON} words stand more often than the others: {context}",
        question=f"Which {_COMMON} words stand in the list most often?",
        opening=f"The {_COMMON} most common words are", answers=tuple(words[:_COMMON]),
    )  # fmt: skip


def frequent_words(rng: random.Random, size: int) -> Item:
    """Words drawn with chances that fall with the square of their rank; the first three are asked for."""
    words = coined(rng, 40)
    weights = [1 / rank**_EXPONENT for rank in range(1, len(words) + 1)]
    counts = dict.fromkeys(words, 0)
    listed = list[str]()
    for word in rng.choices(words, weights, k=size):
        counts[word] += 1
        listed.append(word)
    ranked = sorted(words, key=lambda word: -counts[word])
    while counts[ranked[_FREQUENT - 1]] == counts[ranked[_FREQUENT]]:  # a tie has no right answer
        counts[ranked[_FREQUENT - 1]] += 1
        listed.append(ranked[_FREQUENT - 1])
    return Item(
        context=f"A text in a language that nobody speaks: {' '.join(listed)}.",
        question=f"Which {_FREQUENT} words stand in the text most often?",
        opening=f"The {_FREQUENT} most frequent words are", answers=tuple(ranked[:_FREQUENT]),
    )  # fmt: skip


register_long_task(
    LongTask(
        name="common-words", says="the ten most common words of a list", make=common_words, least=40, answer_tokens=96
    )
)
register_long_task(
    LongTask(name="frequent-words", says="the three most frequent words of a text", make=frequent_words, least=60)
)
