"""Answers over HTTP that end when their client goes away: streams of events, and replies that take long."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

_ALIVE_S = 10.0  # between two signs of life, for proxies and clients that give up on silence
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

Receive = Callable[[], Awaitable[Any]]


def event(data: Any, name: str | None = None) -> str:
    """One server-sent event; data other than a text as JSON."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return (f"event: {name}\n" if name else "") + f"data: {text}\n\n"


class EventStream(Response):
    """A stream of events.

    Args:
        events: as they are sent; closed when the client is gone, which frees what they come from.
        close: called at the end, whatever happened.
        alive: what is sent when nothing has been for a while.
    """

    def __init__(
        self, events: AsyncIterator[str], close: Callable[[], None] = lambda: None, alive: str = ": working\n\n"
    ) -> None:
        super().__init__(media_type="text/event-stream", headers=_HEADERS)
        del self.headers["content-length"]
        self._events, self._close, self._alive = events, close, alive
        self._writing, self._last = asyncio.Lock(), time.monotonic()

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        """Send everything, or as much as there is somebody to read."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await _first_of(self._pump(send), _gone(receive))
        finally:
            self._close()

    async def _pump(self, send: Any) -> None:
        """Events as they come; signs of life from a task beside, so that an event costs no timer."""
        staying = asyncio.ensure_future(self._stay_alive(send))
        try:
            async for text in self._events:
                await self._write(send, text)
            async with self._writing:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            staying.cancel()
            await self._events.aclose()  # type: ignore[attr-defined]

    async def _write(self, send: Any, text: str) -> None:
        async with self._writing:
            self._last = time.monotonic()
            await send({"type": "http.response.body", "body": text.encode("utf-8"), "more_body": True})

    async def _stay_alive(self, send: Any) -> None:
        while True:
            await asyncio.sleep(max(0.1, self._last + _ALIVE_S - time.monotonic()))
            if time.monotonic() >= self._last + _ALIVE_S:
                await self._write(send, self._alive)


async def until_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The reply that `work` makes; it is cancelled when the client goes away."""
    found = await _first_of(work, _gone(request.receive))
    return Response(status_code=499) if found is None else found


async def _gone(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return


async def _first_of(work: Coroutine[Any, Any, Any], other: Coroutine[Any, Any, Any]) -> Any:
    """What `work` gives, or None if the other one ends first; the one that is left is cancelled."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(other)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def merged(streams: list[AsyncIterator[Any]]) -> AsyncIterator[tuple[int, Any]]:
    """Items of several streams as they come, each with the number of its stream; an error ends all."""
    if len(streams) == 1:
        async for item in streams[0]:
            yield 0, item
        return
    items: asyncio.Queue[tuple[int, Any, bool]] = asyncio.Queue()

    async def drain(number: int, stream: AsyncIterator[Any]) -> None:
        try:
            async for item in stream:
                items.put_nowait((number, item, False))
            items.put_nowait((number, None, True))
        except Exception as error:
            items.put_nowait((number, error, True))

    tasks = [asyncio.ensure_future(drain(number, stream)) for number, stream in enumerate(streams)]
    try:
        left = len(tasks)
        while left:
            number, item, last = await items.get()
            if isinstance(item, Exception):
                raise item
            if last:
                left -= 1
            else:
                yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
