"""Two programs on the same questions: how much better one is, and how sure that is.

The interval is that of Bonett and Price (2012) for paired proportions: the normal interval after two more questions,
one for either side; Fagerland, Lydersen and Laake (Statistics in Medicine 33, 2014) recommend it. Answers are right
or wrong there; ours may be right in part, whose differences vary less, which makes the interval wider. It
stands in place of a paired bootstrap, which is too narrow with 5 to 50 questions, and of no width at all where two
programs agree on every question. Beside it stands McNemar's exact test, which needs no approximation but knows no
interval: were the programs equally good, would so many of the questions they differ on favour one?
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from indexshare.eval.bootstrap import Estimate

_NORMAL_95 = 1.959964  # standard deviations that hold 95 % of a normal distribution on both sides


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One program less another on the same questions.

    Attributes:
        difference: mean of the differences of scores, with its 95 % interval.
        better, worse, questions: of so many, on how many each of the two had the higher score.
        p_value: of McNemar's exact test, two-sided.
    """

    difference: Estimate
    better: int
    worse: int
    questions: int
    p_value: float

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out 0."""
        interval = self.difference.interval
        return interval is not None and not interval[0] <= 0 <= interval[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"difference": self.difference.value, "interval": self.difference.interval}


def paired(first: Sequence[float], second: Sequence[float]) -> Paired:
    """How much higher `first` is than `second`, question by question.

    Args:
        first, second: scores from 0 to 1 of the same, independent questions.

    Raises:
        ValueError: no questions, or not as many of each.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} scores; expected one of each per question")
    apart = [a - b for a, b in zip(first, second, strict=True)]
    better, worse = sum(d > 1e-9 for d in apart), sum(d < -1e-9 for d in apart)
    return Paired(
        difference=Estimate(sum(apart) / len(apart), _interval(apart)), better=better, worse=worse,
        questions=len(apart), p_value=exact_p_value(better, worse),
    )  # fmt: skip


def _interval(apart: Sequence[float]) -> tuple[float, float]:
    """Bonett and Price's interval: a question each of +1 and -1 is added."""
    count, total, squares = len(apart) + 2, sum(apart), sum(d * d for d in apart) + 2
    centre, half = total / count, _NORMAL_95 * math.sqrt(squares - total * total / count) / count
    value = total / len(apart)
    return max(-1.0, min(centre - half, value)), min(1.0, max(centre + half, value))


def exact_p_value(better: int, worse: int) -> float:
    """Chance of a split at least as uneven as this one if each question were as likely to favour either program."""
    count, few = better + worse, min(better, worse)
    tail = sum(math.comb(count, k) for k in range(few + 1))
    return min(1.0, 2 * tail / 2**count)
