"""Many clients at once, some ill-behaved, and an engine that is killed: everybody is answered, nothing is left."""

import asyncio
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.serve.conftest import Running, running_server
from tests.unit.serve.test_server import engine_of

CLIENTS, REQUESTS = 32, 500


async def one(http: httpx.AsyncClient, rng: random.Random) -> str:
    """One request of a random kind; what became of it."""
    kind = rng.choice(["plain", "plain", "stream", "stream", "leave", "leave", "broken", "long", "slow", "chat"])
    body: dict[str, Any] = {
        "prompt": "ab " * rng.randrange(1, 300),
        "max_tokens": rng.randrange(1, 60),
        "ignore_eos": True,
    }
    if kind == "broken":
        reply = await http.post("/v1/completions", content=rng.choice([b"{", b"[]", b"\xff\xfe", b'{"prompt": 3}']))
        return f"broken {reply.status_code}"
    if kind == "long":
        reply = await http.post("/v1/completions", content=b'{"prompt": "' + b"a" * 300_000 + b'"}')
        return f"long {reply.status_code}"
    if kind == "plain":
        return checked(await http.post("/v1/completions", json=body))
    if kind == "chat":
        chat = {"messages": [{"role": "user", "content": body["prompt"]}], "max_tokens": body["max_tokens"]}
        return checked(await http.post("/v1/chat/completions", json=chat))
    async with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as reply:
        if reply.status_code != 200:
            await reply.aread()
            return checked(reply)
        last = ""
        async for line in reply.aiter_lines():
            if kind == "leave" and rng.random() < 0.2:
                return "left"
            if kind == "slow":
                await asyncio.sleep(0.02)
            last = line if line.startswith("data: {") else last
        return "error" if "error" in json.loads(last[6:]) else "answered"


def checked(reply: httpx.Response) -> str:
    """Every reply is JSON: an answer, or an error with a sentence."""
    content = reply.json()
    if reply.status_code == 200:
        return "answered" if content["usage"]["completion_tokens"] > 0 else "empty"
    return "error" if content["error"]["message"] else "silent"


async def everybody(server: Running, seed: int) -> list[str]:
    left = list(range(REQUESTS))
    found, refused = list[str](), list[str]()

    async def client(number: int) -> None:
        own = random.Random(seed * 1000 + number)
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as http:
            while left:
                left.pop()
                while (became := await one(http, own)) == "error":
                    refused.append(became)
                    await asyncio.sleep(2)  # as Retry-After says
                found.append(became)
                if len(found) == REQUESTS // 2:
                    os.kill(engine_of(server), signal.SIGKILL)

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    assert refused, "those that the engine had when it was killed"
    return found


def memory_of(process: int) -> int:
    """Bytes that a process holds in memory."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_a_crowd_with_an_engine_that_is_killed(chat_dir: Path) -> None:
    options = ("--cache-tokens", "16384", "--max-body-mib", "0.2", "--max-batch", "16", "--max-requests", "40")
    with running_server(chat_dir, *options) as server:
        engine_of(server)
        server.post("/v1/completions", prompt="a", max_tokens=1)
        before = memory_of(server.process.pid)
        found = asyncio.run(everybody(server, 1))
        counts = {kind: found.count(kind) for kind in sorted(set(found))}
        assert len(found) == REQUESTS and set(counts) <= {"answered", "left", "broken 400", "long 413"}
        assert counts["answered"] > REQUESTS / 3
        assert server.settled("engine_up", 1, within=60) and server.metric("engine_restarts") == 1
        assert server.settled("requests_in_flight", 0) and server.settled("cache_blocks_used", 0)
        assert memory_of(server.process.pid) < before + (64 << 20)
        assert server.post("/v1/completions", prompt="a", max_tokens=1).status_code == 200
