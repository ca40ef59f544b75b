"""Whom long questions are put to: what all of them have in common, and a model in this process.

A server is in `remote.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch

from indexshare import __version__
from indexshare.data.long_tasks import Form, LongTask
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.chat_template import ChatTemplate
from indexshare.text.tokenizer import Tokenizer

_SPARE_TOKENS = 64  # of the cache, for each question of a batch: sequences take whole blocks
_SAMPLES = 1024  # values of each tensor that its fingerprint looks at


@dataclass(frozen=True, kw_only=True)
class Question:
    """One prompt, and how long its answer may be; `number` counts the questions of a kind and length from 0."""

    number: int
    prompt: str
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """What was written, and how many tokens the prompt had, as far as that is known."""

    text: str
    prompt_tokens: int | None


@dataclass(frozen=True)
class Refused:
    """The prompt is longer than the program reads; `reason` in its own words."""

    reason: str


Counter = Callable[[str], int]  # tokens of a prompt


class Asker(Protocol):
    """Answers questions greedily, in one form.

    Attributes:
        name: for reports.
        identity: of everything that an answer depends on beside the question: weights, settings, where it runs.
        form: how questions are put.
    """

    name: str
    identity: str
    form: Form

    def counter(self, task: LongTask) -> Counter:
        """What says how many tokens of this program a prompt of the task has."""

    def answers(self, questions: Iterable[Question], parallel: int) -> Iterator[tuple[Question, Answer | Refused]]:
        """Answers as they come, `parallel` questions at a time; questions are taken from the iterable as needed."""


class ModelAsker:
    """A model in this process.

    Args:
        name: for reports.
        model: in evaluation mode.
        tokenizer: the model's.
        form: chat form needs a template.
        template: the model's.
        caches: `cache_dtype` and `index_cache_dtype` of its engine.

    Raises:
        ValueError: chat form without a template.
    """

    def __init__(
        self,
        name: str,
        model: GlmMoeDsa,
        tokenizer: Tokenizer,
        *,
        form: Form = "base",
        template: ChatTemplate | None = None,
        caches: tuple[str | None, str | None] = (None, None),
    ) -> None:
        if form == "chat" and template is None:
            raise ValueError(
                f"{name} has no chat template: no chat_template.jinja in its directory, and no chat_template in its "
                "tokenizer_config.json; add one, or ask in base form (--form base)"
            )
        self.name, self.form = name, form
        kept = f"cache {caches}" if any(caches) else ""
        self.identity = fingerprint(model, tokenizer, (template.source if template and form == "chat" else "") + kept)
        self._model, self._tokenizer, self._template, self._caches = model, tokenizer, template, caches
        self._llm: LLM | None = None

    def counter(self, task: LongTask) -> Counter:
        """The tokenizer itself, the same for every task."""
        return lambda prompt: len(self._ids(prompt))

    def answers(self, questions: Iterable[Question], parallel: int) -> Iterator[tuple[Question, Answer | Refused]]:
        """Greedy answers, a batch of `parallel` at a time."""
        waiting, most = iter(questions), self._model.config.max_position_embeddings
        while batch := list(islice(waiting, parallel)):
            sizes = [len(self._ids(question.prompt)) + question.max_tokens for question in batch]
            fits = [(question, size) for question, size in zip(batch, sizes, strict=True) if size <= most]
            for question, size in zip(batch, sizes, strict=True):
                if size > most:
                    yield question, Refused(f"the model's context is {most:,} tokens")
            if fits:
                yield from self._batch([q for q, _ in fits], sum(size + _SPARE_TOKENS for _, size in fits))

    def _batch(self, questions: list[Question], cache_tokens: int) -> Iterator[tuple[Question, Answer]]:
        if self._llm is None or self._llm.cache.num_tokens < cache_tokens:
            self._llm = LLM(
                self._model, tokenizer=self._tokenizer, cache_tokens=cache_tokens, cache_dtype=self._caches[0],
                index_cache_dtype=self._caches[1],
            )  # fmt: skip
        params = [SamplingParams(max_tokens=question.max_tokens, temperature=0.0) for question in questions]
        outputs = self._llm.generate([self._prompt(question.prompt) for question in questions], params)
        for question, output in zip(questions, outputs, strict=True):
            yield question, Answer(output.text, output.stats.prompt_tokens)

    def _prompt(self, prompt: str) -> str | list[int]:
        return prompt if self.form == "base" else self._ids(prompt)

    def _ids(self, prompt: str) -> list[int]:
        if self.form == "base":
            return self._tokenizer.encode_prompt(prompt)
        assert self._template is not None
        return self._tokenizer.encode(self._template.render([{"role": "user", "content": prompt}]))


def fingerprint(model: GlmMoeDsa, tokenizer: Tokenizer, *more: str) -> str:
    """A hash of configuration, weights, tokenizer and this package's version: answers may differ where it does.

    Of each tensor a thousand values spread over it are looked at: any training changes some of them.
    """
    digest = hashlib.sha256(repr((__version__, model.config, tokenizer.fingerprint, more)).encode())
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().flatten()
        part = flat[:: max(1, flat.numel() // _SAMPLES)].contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(part.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
