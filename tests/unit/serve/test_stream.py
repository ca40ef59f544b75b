"""Streams of events: signs of life, clients that go away, and an end for what they come from."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from indexshare.serve import stream
from indexshare.serve.stream import EventStream, event


class Client:
    """Takes what is sent; goes away after so many pieces, or never."""

    def __init__(self, leaves_after: int = 1000) -> None:
        self.bodies: list[str] = []
        self._leaves_after = leaves_after
        self._gone = asyncio.Event()

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"].decode())
        if len(self.bodies) >= self._leaves_after:
            self._gone.set()

    async def receive(self) -> Any:
        await self._gone.wait()
        return {"type": "http.disconnect"}


def run(pauses: list[float], leaves_after: int = 1000) -> tuple[list[str], list[str]]:
    ended: list[str] = []

    async def events() -> AsyncIterator[str]:
        try:
            for pause in pauses:
                await asyncio.sleep(pause)
                yield event({"a": 1}, "x")
        finally:
            ended.append("events")

    async def whole() -> list[str]:
        client = Client(leaves_after)
        await EventStream(events(), lambda: ended.append("closed"))({}, client.receive, client.send)
        return client.bodies

    return asyncio.run(whole()), ended


def test_all_of_it() -> None:
    bodies, ended = run([0, 0])
    assert bodies == ['event: x\ndata: {"a": 1}\n\n'] * 2 + [""] and ended == ["events", "closed"]


def test_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_ALIVE_S", 0.15)
    bodies, _ = run([0, 0.8, 0])
    assert bodies.count(": working\n\n") >= 2 and bodies[0].startswith("event: x") and bodies[-1] == ""


def test_a_client_that_goes_away() -> None:
    bodies, ended = run([0, 60], leaves_after=1)
    assert len(bodies) == 1 and ended == ["events", "closed"]


def test_data_as_it_is() -> None:
    assert event("[DONE]") == "data: [DONE]\n\n" and event({"ä": "\n"}) == 'data: {"ä": "\\n"}\n\n'
