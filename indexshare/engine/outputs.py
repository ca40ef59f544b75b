"""What comes back from the engine: tokens, text, log-probabilities and what they cost. Plain Python, no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


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
    cached_tokens: int = 0
    """Prompt tokens that were not computed: an earlier prompt began in the same way."""
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
    draft_rounds: int = 0
    """Steps in which drafts of this request were verified."""
    drafted_tokens: int = 0
    """Drafts verified."""
    accepted_tokens: int = 0
    """Drafts that are part of the text."""
    drafted_by_place: list[int] = field(default_factory=list)
    """Drafts by their place in the round, the first one first."""
    accepted_by_place: list[int] = field(default_factory=list)
    """Those of them that are part of the text."""
    draft_s: float = 0.0
    """Spent on drafting, taking in prompts and accepted tokens included."""
    verify_s: float = 0.0
    """Spent on the steps that verified drafts."""

    spill_rows: int = 0
    """Rows that this request's steps needed of a cache with files: once for all layers that share a choice."""
    spill_found: int = 0
    """Those of them that were in memory."""
    spill_bytes_read: int = 0
    spill_wait_s: float = 0.0
    """Spent on reading and writing those files."""

    def add_round(self, drafted: int, accepted: int, seconds: float) -> None:
        """Count a round of drafts, the first `accepted` of which became part of the text."""
        self.draft_rounds += 1
        self.drafted_tokens += drafted
        self.accepted_tokens += accepted
        self.verify_s += seconds
        for counts, number in ((self.drafted_by_place, drafted), (self.accepted_by_place, accepted)):
            counts.extend([0] * (drafted - len(counts)))
            for place in range(number):
                counts[place] += 1

    @property
    def accepted_length(self) -> float:
        """Tokens that a round with drafts gives: accepted drafts and the one behind them. 0 without rounds."""
        return 1 + self.accepted_tokens / self.draft_rounds if self.draft_rounds else 0.0

    @property
    def acceptance(self) -> float:
        """Accepted drafts as a share of all drafts, 0 without any."""
        return self.accepted_tokens / self.drafted_tokens if self.drafted_tokens else 0.0

    @property
    def spill_hit_rate(self) -> float:
        """Rows found in memory as a share of those needed, 1.0 where none was."""
        return self.spill_found / self.spill_rows if self.spill_rows else 1.0

    @property
    def share_attended(self) -> float:
        """Attended keys as a share of the available ones, 1.0 where nothing was computed."""
        return self.tokens_attended / self.tokens_available if self.tokens_available else 1.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Computed prompt tokens per second of prefill, 0 before the first token."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Generated tokens after the first per second, 0 when there are none."""
        return (self.completion_tokens - 1) / self.decode_s if self.decode_s else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All counts and rates as plain values for JSON."""
        speeds = ("prefill_tokens_per_s", "decode_tokens_per_s")
        rates = ("share_attended", *speeds, "accepted_length", "acceptance", "spill_hit_rate")
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
    the last chunk of an aborted generation. `output` is None in all chunks but the last. `drafted` says that the token
    was a draft that stayed.
    """

    text: str
    token_id: int | None
    logprobs: TokenLogprobs | None = None
    output: CompletionOutput | None = None
    drafted: bool = False
