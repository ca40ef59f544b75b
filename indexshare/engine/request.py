"""One prompt on its way through the engine. Plain Python, no torch."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from indexshare.cache.blocks import BlockTable
from indexshare.cache.prefix import TOKEN_BYTES, pack_tokens
from indexshare.engine.outputs import RequestStats, TokenLogprobs
from indexshare.engine.params import SEED_BITS, SamplingParams

_request_numbers = itertools.count()


class RequestState(Enum):
    """Where a request stands; a preempted one goes back to WAITING."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


@dataclass(eq=False)
class Request:
    """One prompt on its way through the engine. `tokens` is the prompt followed by what was generated.

    The first `computed` tokens have their keys in the cache, in the blocks of `table`.
    `drafts` are guesses of the next tokens, which the next step computes behind the last one.
    `epoch` is that of the known prefixes in which it was admitted, -1 when nobody may begin with its blocks.
    """

    prompt_ids: Sequence[int]
    params: SamplingParams
    eos_ids: frozenset[int] = frozenset()
    state: RequestState = RequestState.WAITING
    computed: int = 0
    table: BlockTable = field(default_factory=BlockTable)
    epoch: int = -1
    tokens: list[int] = field(init=False)
    drafts: Sequence[int] = ()
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    number: int = field(default_factory=lambda: next(_request_numbers))
    arrived_at: float = field(default_factory=time.perf_counter)
    started_at: float | None = None
    first_token_at: float | None = None
    seed: int = field(init=False)
    stats: RequestStats = field(init=False)
    _packed: bytes = field(default=b"", repr=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt_ids)
        self.seed = secrets.randbits(SEED_BITS) if self.params.seed is None else self.params.seed
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

    def packed(self) -> bytes:
        """All tokens so far, as they are compared with others."""
        if len(self._packed) != TOKEN_BYTES * len(self.tokens):
            self._packed = pack_tokens(self.tokens)
        return self._packed

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
