"""What requests cost, in the words of the interfaces."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from indexshare.engine.outputs import RequestStats


def openai_usage(all_stats: Iterable[RequestStats], each: int = 1, reasoning: int = 0) -> dict[str, Any]:
    """Usage of `each` answers to every prompt, in order; a prompt counts once."""
    stats = list(all_stats)
    firsts = stats[::each]
    prompt, written = sum(s.prompt_tokens for s in firsts), sum(s.completion_tokens for s in stats)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": sum(s.cached_tokens for s in firsts)},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    rounds = sum(s.draft_rounds for s in stats)
    if rounds:
        drafted, accepted = sum(s.drafted_tokens for s in stats), sum(s.accepted_tokens for s in stats)
        usage["draft"] = {"rounds": rounds, "drafted_tokens": drafted, "accepted_tokens": accepted}
    return usage


def timings(stats: RequestStats) -> dict[str, float]:
    """Seconds and rates of one request."""
    return {
        "queue_s": round(stats.queue_s, 6),
        "prefill_s": round(stats.prefill_s, 6),
        "first_token_s": round(stats.first_token_s, 6),
        "decode_s": round(stats.decode_s, 6),
        "prefill_tokens_per_s": round(stats.prefill_tokens_per_s, 2),
        "decode_tokens_per_s": round(stats.decode_tokens_per_s, 2),
    }
