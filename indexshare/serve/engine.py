"""The server's end of the engine: its process, requests in it, and what becomes of them when it dies."""

from __future__ import annotations

import asyncio
import itertools
import logging
import multiprocessing
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from indexshare.engine.outputs import Chunk, TokenLogprobs
from indexshare.engine.params import SamplingParams
from indexshare.serve.errors import ApiError
from indexshare.serve.wire import (
    Abort,
    Broken,
    EngineSettings,
    EngineState,
    Order,
    Ready,
    Refused,
    Report,
    Score,
    Scored,
    Stepped,
    Stop,
    Submit,
)
from indexshare.serve.worker import run_engine

_LONGEST_WAIT = 30.0  # seconds between two attempts to start an engine that dies at once
_log = logging.getLogger(__name__)


class Ticket:
    """One request in the engine: what it gives, as it comes. To be closed, whatever happens."""

    def __init__(self, key: int, close: Callable[[Ticket], None]) -> None:
        self.key = key
        self._close = close
        self._items: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, item: Any) -> None:
        """Chunks, scores, or the error that ends it."""
        self._items.put_nowait(item)

    async def take(self) -> Any:
        """The next of them; raises the error."""
        item = await self._items.get()
        if isinstance(item, ApiError):
            raise item
        return item

    async def chunks(self) -> AsyncIterator[list[Chunk]]:
        """All chunks, those together that are there at a time."""
        while True:
            found = list(await self.take())
            while not self._items.empty() and not isinstance(found[-1], ApiError):
                item = self._items.get_nowait()
                if isinstance(item, ApiError):
                    yield found
                    raise item
                found += item
            yield found
            if found[-1].output is not None:
                return

    def close(self) -> None:
        """End it if it has not ended, and free its blocks."""
        self._close(self)


class EngineClient:
    """Starts the engine's process, again if it dies, and brings requests to it.

    Args:
        settings: what it loads.
        died: called with a sentence when it has died.
    """

    def __init__(self, settings: EngineSettings, died: Callable[[str], None] = lambda message: None) -> None:
        self._settings, self._died = settings, died
        self._keys = itertools.count()
        self._tickets: dict[int, Ticket] = {}
        self._process: Any = None
        self._connection: Connection | None = None
        self._broken = ""
        self._stopping = False
        self._ready = asyncio.Event()
        self._restarting: asyncio.Task[None] | None = None
        self.facts: Ready | None = None
        self.state = EngineState()
        self.restarts = 0

    @property
    def is_ready(self) -> bool:
        """Whether requests can be brought to it."""
        return self._ready.is_set()

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._tickets)

    @property
    def pid(self) -> int | None:
        """Number of its process."""
        return None if self._process is None else self._process.pid

    async def start(self) -> Ready:
        """Start the process and wait until the model is loaded.

        Raises:
            ValueError: the model cannot be loaded.
        """
        self._spawn()
        while not self._ready.is_set():
            if self._process is None:
                raise ValueError(self._broken or "the engine's process ended while it loaded the model")
            await asyncio.sleep(0.02)
        assert self.facts is not None
        return self.facts

    def submit(self, ids: Sequence[int], params: SamplingParams) -> Ticket:
        """Bring a request to the engine; ApiError when there is none at the moment."""
        return self._bring(lambda key: Submit(key, ids, params))

    async def score(self, ids: Sequence[int], top: int) -> Sequence[TokenLogprobs]:
        """Log-probabilities of all tokens but the first."""
        ticket = self._bring(lambda key: Score(key, ids, top))
        try:
            found = await ticket.take()
            assert isinstance(found, Scored)
            return found.tokens
        finally:
            ticket.close()

    def end_all(self, error: ApiError) -> None:
        """End every request with an error."""
        for ticket in list(self._tickets.values()):
            ticket.put(error)
            ticket.close()

    async def stop(self) -> None:
        """End the process."""
        self._stopping = True
        if self._restarting is not None:
            self._restarting.cancel()
        process = self._process
        self._send(Stop())
        if process is not None:
            await asyncio.to_thread(process.join, 5)
            if process.is_alive():
                process.kill()

    def _bring(self, order: Callable[[int], Order]) -> Ticket:
        if not self._ready.is_set():
            raise ApiError(503, "the engine is being started; try again in a moment", code="starting", retry_after=2)
        ticket = Ticket(next(self._keys), self._close)
        self._tickets[ticket.key] = ticket
        self._send(order(ticket.key))
        return ticket

    def _close(self, ticket: Ticket) -> None:
        if self._tickets.pop(ticket.key, None) is not None:
            self._send(Abort(ticket.key))

    def _send(self, order: Order) -> None:
        try:
            if self._connection is not None:
                self._connection.send(order)
        except OSError:  # it has died; its reader says so to everybody
            pass

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=run_engine, args=(theirs, self._settings), daemon=True)
        process.start()
        theirs.close()
        self._process, self._connection, self._broken = process, ours, ""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(process, ours, loop), daemon=True).start()

    def _read(self, process: Any, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        """Runs in a thread of its own: reports, until there are no more."""
        try:
            while True:
                loop.call_soon_threadsafe(self._received, process, connection.recv())
        except (EOFError, OSError):
            pass
        except RuntimeError:  # the loop is closed
            return
        process.join(5)
        try:
            loop.call_soon_threadsafe(self._lost, process)
        except RuntimeError:
            return

    def _received(self, process: Any, report: Report) -> None:
        if process is not self._process:
            return
        if isinstance(report, Ready):
            self.facts, self.state = report, report.state
            self._ready.set()
        elif isinstance(report, Stepped):
            self.state = report.state
            for key, chunks in report.chunks:
                self._give(key, chunks, last=chunks[-1].output is not None)
        elif isinstance(report, Scored):
            self._give(report.key, report, last=True)
        elif isinstance(report, Refused):
            status, code = (400, "invalid_request") if report.wrong else (500, "generation_failed")
            self._give(report.key, ApiError(status, report.message, code=code), last=True)
        elif isinstance(report, Broken):
            self._broken = report.message

    def _give(self, key: int, item: Any, *, last: bool) -> None:
        ticket = self._tickets.pop(key, None) if last else self._tickets.get(key)
        if ticket is not None:
            ticket.put(item)

    def _lost(self, process: Any) -> None:
        """The process is gone: answer everybody, and start another one."""
        if process is not self._process:
            return
        was_ready, reason = self._ready.is_set(), self._broken or f"exit code {process.exitcode}"
        self._ready.clear()
        self._process, self._connection, self.state = None, None, EngineState()
        error = ApiError(
            503, f"the engine died ({reason}) and is being restarted; send the request again", code="engine_died",
            retry_after=2,
        )  # fmt: skip
        for ticket in list(self._tickets.values()):
            ticket.put(error)
        self._tickets.clear()
        if self._stopping or (not was_ready and not self.restarts):
            return
        self._died(reason)
        self.restarts += 1
        self._restarting = asyncio.ensure_future(
            self._restart(0.0 if was_ready else min(2.0**self.restarts, _LONGEST_WAIT))
        )

    async def _restart(self, wait: float) -> None:
        await asyncio.sleep(wait)
        self._spawn()
