"""What every endpoint works with: the engine, the model, limits and counts."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from indexshare.engine.outputs import Chunk, CompletionOutput
from indexshare.engine.params import SamplingParams
from indexshare.serve.body import parse_object
from indexshare.serve.engine import EngineClient, Ticket
from indexshare.serve.errors import ApiError
from indexshare.serve.metrics import Metrics
from indexshare.serve.model import ServedModel
from indexshare.serve.stream import merged


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is too much.

    Attributes:
        requests: most of them in the engine at a time; further ones are turned away.
        body_bytes: most that a request's body holds.
        grace_s: seconds that running requests have to finish when the server stops.
    """

    requests: int = 256
    body_bytes: int = 64 << 20
    grace_s: float = 30.0


class Running:
    """Requests in the engine that one client waits for."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.tickets: list[Ticket] = []

    async def chunks(self) -> AsyncIterator[tuple[int, list[Chunk]]]:
        """Chunks of all of them as they come, with the number of the request."""
        async for number, chunks in merged([ticket.chunks() for ticket in self.tickets]):
            if chunks[-1].output is not None:
                self._metrics.finished(chunks[-1].output)
            yield number, chunks

    async def outputs(self) -> list[CompletionOutput]:
        """What all of them came to; they are over then, or if it fails."""
        found: dict[int, CompletionOutput] = {}
        try:
            async for number, chunks in self.chunks():
                if chunks[-1].output is not None:
                    found[number] = chunks[-1].output
        finally:
            self.close()
        return [found[number] for number in range(len(self.tickets))]

    def close(self) -> None:
        """End those that have not ended, and free their blocks."""
        for ticket in self.tickets:
            ticket.close()


@dataclass(kw_only=True)
class Service:
    """The parts of a running server.

    Attributes:
        started: when, in seconds since 1970.
        stopping: whether it takes no new requests.
    """

    engine: EngineClient
    model: ServedModel
    metrics: Metrics
    limits: Limits = field(default_factory=Limits)
    started: int = field(default_factory=lambda: int(time.time()))
    stopping: bool = False

    def admit(self, number: int = 1) -> None:
        """Turn away (429 or 503) what there is no room for."""
        if self.stopping:
            raise ApiError(503, "the server is stopping; try another one", code="stopping", retry_after=5)
        if self.engine.in_flight + number > self.limits.requests:
            self.metrics.turned_away.inc()
            raise ApiError(
                429, f"{self.engine.in_flight} requests are running or waiting, and the server takes "
                f"{self.limits.requests} at a time; try again in a moment", code="too_many_requests", retry_after=1,
            )  # fmt: skip

    def start(self, requests: Sequence[tuple[Sequence[int], SamplingParams]]) -> Running:
        """Bring requests to the engine, all or none; ApiError for those that there is no room for."""
        self.admit(len(requests))
        for ids, params in requests:
            self.model.check_fits(len(ids), params)
        running = Running(self.metrics)
        try:
            for ids, params in requests:
                running.tickets.append(self.engine.submit(ids, params))
        except ApiError:
            running.close()
            raise
        return running


async def read_body(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object of a request; ApiError for one that is too long, or none."""
    data, most = bytearray(), limits.body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise _too_long(most)
    async for piece in request.stream():
        data += piece
        if len(data) > most:
            raise _too_long(most)
    return await asyncio.to_thread(parse_object, bytes(data)) if len(data) > 1 << 20 else parse_object(bytes(data))


def _too_long(most: int) -> ApiError:
    return ApiError(413, f"the body is longer than {most:,} bytes; send less", code="body_too_large")


def new_id(prefix: str) -> str:
    """A name for a reply."""
    return prefix + secrets.token_hex(12)
