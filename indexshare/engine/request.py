"""What is asked of the engine and what comes back: parameters, requests, outputs. Plain Python, no torch.

Everything a user can get wrong is refused here with a ValueError before any work is done.
"""

from __future__ import annotations

import itertools
import math
import operator
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from indexshare.cache.blocks import BlockTable

_SEED_BITS = 63
_request_numbers = itertools.count()


class RequestState(Enum):
    """Where a request stands; a preempted one goes back to WAITING."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


class CapacityError(ValueError):
    """A request that can never fit into the context or the cache, with the sizes and the fix."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when generation ends.

    Filters apply in the order temperature, top_k, top_p, min_p (see `engine.sampler`).

    Args:
        max_tokens: most tokens to generate, at least 1.
        temperature: 0 takes the most likely token (the lowest id among equals); 1 is the model's own
            distribution.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens until their probabilities sum to at least this, in (0, 1].
        min_p: drop tokens less likely than this fraction of the most likely one, in [0, 1].
        seed: makes the draws repeatable, whatever else runs in the batch; None draws a fresh one per request.
        stop: strings that end the text; they are not part of it.
        stop_token_ids: ids that end the text besides the model's own end-of-text ids.
        ignore_eos: go on past the model's end-of-text ids.
        logprobs: None for none; n for the log-probability of each chosen token and of the n most likely ones.

    Raises:
        ValueError: a value of the wrong type or out of range.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _check_integer("max_tokens", self.max_tokens, low=1)
        _check_integer("top_k", self.top_k, low=0, hint="; use 0 to keep all tokens")
        _check_number("temperature", self.temperature, "a number, 0 or more", lambda x: x >= 0)
        _check_number("top_p", self.top_p, "a number above 0 and at most 1", lambda x: 0 < x <= 1)
        _check_number("min_p", self.min_p, "a number from 0 to 1", lambda x: 0 <= x <= 1)
        if self.seed is not None:
            _check_integer("seed", self.seed, low=0, high=2**_SEED_BITS - 1)
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, low=0, hint="; use None for no log-probabilities")
        if not isinstance(self.ignore_eos, bool):
            raise ValueError(f"ignore_eos is {self.ignore_eos!r}; expected True or False")
        stop = (self.stop,) if isinstance(self.stop, str) else _as_tuple("stop", self.stop, "strings")
        for text in stop:
            if not isinstance(text, str) or not text:
                raise ValueError(f"stop contains {text!r}; expected non-empty strings")
        object.__setattr__(self, "stop", stop)
        ids = _as_tuple("stop_token_ids", self.stop_token_ids, "integers")
        for token in ids:
            _check_integer("an id in stop_token_ids", token, low=0)
        object.__setattr__(self, "stop_token_ids", ids)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken without a draw."""
        return self.temperature == 0 or self.top_k == 1


@dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """Natural log-probabilities at one generated position, from the model's own distribution.

    Taken before temperature and filters, so they do not depend on how the token was chosen.
    `top` holds the most likely (id, log-probability) pairs, best first, lower id first among equals.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(kw_only=True)
class RequestStats:
    """What one request cost. Times are wall seconds and include the work done for others in the same batch.

    Counts cover the positions that were computed, again after a preemption; the last generated token is never
    computed. An index pass is one layer choosing the keys of one query; it is needed only where the context
    is longer than the number of keys chosen.
    """

    prompt_tokens: int
    completion_tokens: int = 0
    queue_s: float = 0.0
    """From arrival to the first step with this request."""
    prefill_s: float = 0.0
    """From there to the first generated token."""
    decode_s: float = 0.0
    """From the first generated token to the last."""
    first_token_s: float = 0.0
    """From arrival to the first generated token."""
    index_passes_run: int = 0
    """Index passes by Full layers."""
    index_passes_saved: int = 0
    """Passes that Shared layers did not run because they reused a selection."""
    tokens_attended: int = 0
    """Keys attended per layer, summed over the computed queries."""
    tokens_available: int = 0
    """Keys that full attention would have attended."""
    preemptions: int = 0

    @property
    def share_attended(self) -> float:
        """Attended keys as a share of the available ones, 1.0 where nothing was computed."""
        return self.tokens_attended / self.tokens_available if self.tokens_available else 1.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Prompt tokens per second of prefill, 0 before the first token."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Generated tokens after the first per second, 0 when there are none."""
        return (self.completion_tokens - 1) / self.decode_s if self.decode_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All counts and rates as plain values for JSON."""
        rates = ("share_attended", "prefill_tokens_per_s", "decode_tokens_per_s")
        return asdict(self) | {name: getattr(self, name) for name in rates}


@dataclass(frozen=True, kw_only=True)
class CompletionOutput:
    """One finished generation.

    `text` ends before the stop string and holds no special tokens; it is empty without a tokenizer.
    `token_ids` are all tokens generated, the end-of-text id or the tokens of the stop string included.
    `finish_reason` is "stop" (end of text, stop id or stop string), "length" (`max_tokens` reached) or
    "abort".
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: str
    stats: RequestStats


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """One step of a stream: the text released by one token, and at the end the finished output.

    `text` may be empty while characters or possible stop strings are incomplete. `token_id` is None only in
    the last chunk of an aborted generation. `output` is None in all chunks but the last.
    """

    text: str
    token_id: int | None
    logprobs: TokenLogprobs | None = None
    output: CompletionOutput | None = None


@dataclass(eq=False)
class Request:
    """One prompt on its way through the engine. `tokens` is the prompt followed by what was generated.

    The first `computed` tokens have their keys in the cache, in the blocks of `table`.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams
    eos_ids: frozenset[int] = frozenset()
    state: RequestState = RequestState.WAITING
    computed: int = 0
    table: BlockTable = field(default_factory=BlockTable)
    tokens: list[int] = field(init=False)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    number: int = field(default_factory=lambda: next(_request_numbers))
    arrived_at: float = field(default_factory=time.perf_counter)
    started_at: float | None = None
    first_token_at: float | None = None
    seed: int = field(init=False)
    stats: RequestStats = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt_ids)
        self.seed = secrets.randbits(_SEED_BITS) if self.params.seed is None else self.params.seed
        self.stats = RequestStats(prompt_tokens=len(self.tokens))

    @property
    def prompt_len(self) -> int:
        """Number of prompt tokens."""
        return self.stats.prompt_tokens

    @property
    def output_ids(self) -> list[int]:
        """Generated tokens so far."""
        return self.tokens[self.prompt_len :]

    @property
    def num_outputs(self) -> int:
        """Number of generated tokens so far."""
        return len(self.tokens) - self.prompt_len

    @property
    def pending(self) -> int:
        """Tokens whose keys are still to be computed; the next token is drawn when none is left."""
        return len(self.tokens) - self.computed

    @property
    def max_len(self) -> int:
        """Most tokens whose keys are ever needed: the last generated one is never computed."""
        return self.prompt_len + self.params.max_tokens - 1

    @property
    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.state is RequestState.FINISHED

    def append(self, token: int, now: float) -> None:
        """Take a generated token and decide whether it is the last one (stop strings are the caller's)."""
        self.tokens.append(token)
        self.stats.completion_tokens += 1
        if self.first_token_at is None:
            self.first_token_at = now
            self.stats.first_token_s = now - self.arrived_at
            if self.started_at is not None:
                self.stats.prefill_s = now - self.started_at
        self.stats.decode_s = now - self.first_token_at
        if token in self.params.stop_token_ids or (token in self.eos_ids and not self.params.ignore_eos):
            self.finish_reason = "stop"
        elif self.stats.completion_tokens >= self.params.max_tokens:
            self.finish_reason = "length"


def check_prompt(prompt: Iterable[Any], vocab_size: int, name: str = "prompt") -> list[int]:
    """Token ids as plain integers.

    Args:
        prompt: ids in any sequence; numpy and torch integers are accepted.
        vocab_size: ids must be below it.
        name: what to call the prompt in messages.

    Raises:
        ValueError: no ids, something that is not an integer, or an id out of range.
    """
    ids = list(prompt)
    if not ids:
        raise ValueError(f"{name} is empty; expected at least one token")
    if set(map(type, ids)) != {int}:
        for at, value in enumerate(ids):
            ids[at] = _plain_integer(value, f"{name}, position {at}")
    if min(ids) < 0 or max(ids) >= vocab_size:
        at, bad = next((i, t) for i, t in enumerate(ids) if not 0 <= t < vocab_size)
        raise ValueError(f"{name}, position {at}: token id {bad} is out of range; expected 0 to {vocab_size - 1}")
    return ids


def check_capacity(
    prompt_len: int, max_tokens: int, *, max_context: int, cache_tokens: int, name: str = "prompt"
) -> None:
    """Refuse what could never finish, even alone.

    Args:
        prompt_len: prompt tokens.
        max_tokens: most tokens to be generated.
        max_context: most positions, prompt and generated ones together.
        cache_tokens: tokens that the whole cache holds.

    Raises:
        CapacityError: with the sizes and the fix.
    """
    total = prompt_len + max_tokens
    if prompt_len >= max_context:
        raise CapacityError(
            f"{name} has {prompt_len} tokens, but the context holds {max_context}, of which at least one is "
            f"generated; shorten it to at most {max_context - 1}, or raise max_context if the model allows it"
        )
    if total > max_context:
        raise CapacityError(
            f"{name}: {prompt_len} prompt tokens + max_tokens {max_tokens} = {total} exceed the context of "
            f"{max_context}; set max_tokens to at most {max_context - prompt_len} or shorten the prompt"
        )
    if total - 1 > cache_tokens:  # the last generated token needs no room
        raise CapacityError(
            f"{name}: {prompt_len} prompt tokens + max_tokens {max_tokens} take {total - 1} cache slots, but "
            f"the cache has {cache_tokens}; raise cache_tokens, lower max_tokens or shorten the prompt"
        )


def _plain_integer(value: Any, where: str) -> int:
    """`value` as an int; bool, float and everything else that is not an integer is refused."""
    if type(value) is int:
        return value
    if not isinstance(value, bool) and "bool" not in type(value).__name__ and not _is_boolean_scalar(value):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise ValueError(f"{where}: {value!r} is not an integer; expected token ids")


def _is_boolean_scalar(value: Any) -> bool:
    """Whether this is a numpy or torch scalar of boolean type, told by its dtype's name."""
    return "bool" in str(getattr(value, "dtype", ""))


def _check_integer(name: str, value: Any, *, low: int, high: int | None = None, hint: str = "") -> None:
    expected = f"an integer, {low} or more" if high is None else f"an integer from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ValueError(f"{name} is {value!r}; expected {expected}{hint}")


def _check_number(name: str, value: Any, expected: str, holds: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not holds(value):
        raise ValueError(f"{name} is {value!r}; expected {expected}")


def _as_tuple(name: str, value: Any, of: str) -> tuple[Any, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise ValueError(f"{name} is {value!r}; expected a list of {of}")
    return tuple(value)
