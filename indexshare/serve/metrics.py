"""Counts and times in Prometheus's form, at `/metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from indexshare.engine.outputs import CompletionOutput

if TYPE_CHECKING:
    from indexshare.serve.engine import EngineClient

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """What one server has counted."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("http_requests", "Requests by path and status", ("path", "status"))
        self.turned_away = self._counter("requests_turned_away", "Requests answered with 429")
        self.disconnected = self._counter("requests_disconnected", "Requests whose client went away")
        self._ends = self._counter("generations", "Generations by reason of their end", ("reason",))
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts")
        self._cached = self._counter("cached_prompt_tokens", "Those of them found in the cache")
        self._written = self._counter("generated_tokens", "Tokens written")
        self._drafted = self._counter("drafted_tokens", "Tokens drafted")
        self._accepted = self._counter("accepted_draft_tokens", "Drafts that are part of the text")
        self._first = self._histogram("time_to_first_token_seconds", "From arrival in the engine to the first token")
        self._queue = self._histogram("queue_seconds", "From arrival in the engine to the first step")
        self._each = self._histogram("time_per_output_token_seconds", "Between tokens of a text, on average")
        self._gauges = {
            name: Gauge(f"indexshare_{name}", text, registry=self.registry)
            for name, text in (
                ("requests_running", "Requests that hold cache blocks"),
                ("requests_waiting", "Requests that wait for them"),
                ("requests_in_flight", "Requests that have not ended, by the server's count"),
                ("cache_blocks", "Blocks of the cache"),
                ("cache_blocks_used", "Blocks that requests hold"),
                ("engine_up", "Whether the engine runs"),
                ("engine_restarts", "How often it was started again"),
            )
        }

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"indexshare_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"indexshare_{name}", text, buckets=_SECONDS, registry=self.registry)

    def finished(self, output: CompletionOutput) -> None:
        """Count a generation that has ended."""
        stats = output.stats
        self._ends.labels(output.finish_reason).inc()
        self._prompt.inc(stats.prompt_tokens)
        self._cached.inc(stats.cached_tokens)
        self._written.inc(stats.completion_tokens)
        self._drafted.inc(stats.drafted_tokens)
        self._accepted.inc(stats.accepted_tokens)
        self._queue.observe(stats.queue_s)
        if stats.completion_tokens:
            self._first.observe(stats.first_token_s)
        if stats.completion_tokens > 1:
            self._each.observe(stats.decode_s / (stats.completion_tokens - 1))

    def text(self, engine: EngineClient) -> bytes:
        """Everything, with the engine as it is now."""
        state = engine.state
        now = {
            "requests_running": state.running,
            "requests_waiting": state.waiting,
            "requests_in_flight": engine.in_flight,
            "cache_blocks": state.blocks,
            "cache_blocks_used": state.blocks_used,
            "engine_up": int(engine.is_ready),
            "engine_restarts": engine.restarts,
        }
        for name, value in now.items():
            self._gauges[name].set(value)
        return generate_latest(self.registry)
