"""Long questions put to a model, answered greedily; scores by length with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from indexshare.data.long_tasks import LongTask, fit_item, score
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.eval.bootstrap import Estimate
from indexshare.eval.forward import Progress
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import Tokenizer

DEFAULT_LENGTHS = (1024, 2048, 4096, 8192)
_Z95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class LongReport:
    """Scores of one task.

    Attributes:
        task: its name.
        lengths: most tokens of prompt and answer.
        scores: by [length][question], 0 to 1; question i is the same for every model with this tokenizer.
        tokens: of the prompts, by [length][question].
    """

    task: str
    lengths: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]
    tokens: tuple[tuple[int, ...], ...]

    def mean(self, length: int) -> Estimate:
        """Mean score at a length with its interval."""
        return mean_score(self.scores[self.lengths.index(length)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        rows = []
        for length, scores, tokens in zip(self.lengths, self.scores, self.tokens, strict=True):
            found = self.mean(length)
            rows.append({
                "length": length, "score": found.value, "interval": found.interval, "scores": list(scores),
                "prompt_tokens": list(tokens),
            })  # fmt: skip
        return {"task": self.task, "lengths": rows}


def mean_score(scores: Sequence[float]) -> Estimate:
    """Mean of scores between 0 and 1 with the Wilson interval, which is wide enough: none varies more than 0 and 1."""
    count, z2 = len(scores), _Z95**2
    part = sum(scores) / count
    centre = (part + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 / (1 + z2 / count) * math.sqrt(max(0.0, part * (1 - part)) / count + z2 / (4 * count**2))
    return Estimate(part, (max(0.0, centre - half), min(1.0, centre + half)))


def evaluate_long(
    model: GlmMoeDsa,
    tokenizer: Tokenizer,
    task: LongTask,
    *,
    lengths: Sequence[int],
    samples: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> LongReport:
    """Put `samples` questions of a task at each length, in the form of a text to be continued.

    Args:
        model: in evaluation mode; tokenizer: the model's.
        task: what is asked.
        lengths: tokens of prompt and answer, within the model's context.
        samples: questions at each length.
        seed: question i is a function of the task, the seed, i, the length and the tokenizer.
        progress: told (tokens done, tokens in all).

    Raises:
        ValueError: no samples, or a length too short for the task.
    """
    if samples < 1:
        raise ValueError(f"--samples is {samples}; expected at least 1")
    llm = LLM(model, tokenizer=tokenizer, cache_tokens=max(lengths) + 64)
    greedy = SamplingParams(max_tokens=task.answer_tokens, temperature=0.0)
    total, done = sum(lengths) * samples, 0
    scores, tokens = list[tuple[float, ...]](), list[tuple[int, ...]]()
    for length in lengths:
        row, sizes = list[float](), list[int]()
        for index in range(samples):
            item = fit_item(task, seed=seed, index=index, length=length, count=lambda text: len(tokenizer.encode(text)))
            output = llm.generate([item.prompt("base")], greedy)[0]
            row.append(score(task, item, first_line(output.text)))
            sizes.append(output.stats.prompt_tokens)
            done += length
            if progress is not None:
                progress(done, total)
        scores.append(tuple(row))
        tokens.append(tuple(sizes))
    return LongReport(task=task.name, lengths=tuple(lengths), scores=tuple(scores), tokens=tuple(tokens))


def first_line(text: str) -> str:
    """A continuation up to the first line break that has something before it."""
    return text.lstrip().split("\n", 1)[0]
