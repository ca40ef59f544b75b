"""The server as a whole: keys, limits, clients that go away, an engine that dies, and the end."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.serve.conftest import Running, running_server

LONG: dict[str, Any] = {"prompt": "def f(", "max_tokens": 3000, "ignore_eos": True, "stream": True}
KEY = {"Authorization": "Bearer two"}


@pytest.fixture(scope="module")
def guarded(chat_dir: Path) -> Iterator[Running]:
    """A server with keys and narrow limits, which these tests may harm."""
    options = ("--api-key-env", "KEYS", "--max-requests", "3", "--max-body-mib", "0.05", "--grace", "1")
    with running_server(chat_dir, "--cache-tokens", "16384", *options, KEYS="one, two") as running:
        running.http.headers.update(KEY)
        yield running


class Listener:
    """A client that reads a stream in a thread of its own."""

    def __init__(self, server: Running, **body: Any) -> None:
        self.lines: list[str] = []
        self.error: Exception | None = None
        self._server, self._body = server, LONG | body
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            with httpx.stream(
                "POST", f"{self._server.url}/v1/completions", json=self._body, headers=KEY, timeout=60
            ) as reply:
                for line in reply.iter_lines():
                    self.lines += [line] if line.startswith("data") else []
        except httpx.HTTPError as error:
            self.error = error

    def heard(self, number: int = 3) -> "Listener":
        end = time.monotonic() + 30
        while len(self.lines) < number and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        return self

    def end(self) -> list[Any]:
        self._thread.join(60)
        assert not self._thread.is_alive() and self.error is None, self.error
        assert self.lines[-1] == "data: [DONE]"
        return [json.loads(line[6:]) for line in self.lines[:-1]]


def engine_of(server: Running) -> int:
    """Process number of the engine: of the server's children the one that computes."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    if not children.is_file():
        pytest.skip("this system does not say which processes are children of others")
    for child in map(int, children.read_text().split()):
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            return child
    raise AssertionError("no engine")


def test_keys(guarded: Running) -> None:
    with httpx.Client(base_url=guarded.url) as http:
        assert http.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/nothing"):
            reply = http.get(path)
            assert reply.status_code == 401 and "Authorization: Bearer KEY" in reply.json()["error"]["message"]
        assert http.get("/v1/models", headers={"x-api-key": "one"}).status_code == 200
        assert http.get("/v1/models", headers=KEY).status_code == 200
        for wrong in ("tw", "two,", "", "one, two"):
            assert http.get("/v1/models", headers={"x-api-key": wrong}).status_code == 401


def test_bodies_that_are_too_long(guarded: Running) -> None:
    reply = guarded.post("/v1/completions", prompt="a" * 60_000)
    assert reply.status_code == 413 and "52,428 bytes" in reply.json()["error"]["message"]

    def pieces() -> Iterator[bytes]:
        yield from [b'{"prompt": "'] + [b"a" * 10_000] * 9

    assert guarded.http.post("/v1/completions", content=pieces()).status_code == 413


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_blocks(guarded: Running, stream: bool) -> None:
    gone = guarded.metric("requests_disconnected_total")
    if stream:
        with guarded.http.stream("POST", "/v1/completions", json=LONG) as reply:
            next(reply.iter_lines())
            assert guarded.metric("cache_blocks_used") > 0
    else:
        with pytest.raises(httpx.ReadTimeout):
            guarded.http.post("/v1/completions", json=LONG | {"stream": False}, timeout=0.4)
    assert guarded.settled("requests_in_flight", 0) and guarded.settled("cache_blocks_used", 0)
    assert guarded.metric("requests_disconnected_total") == gone + (not stream)


def test_too_many_requests_are_turned_away(guarded: Running) -> None:
    listeners = [Listener(guarded, max_tokens=600).heard() for _ in range(3)]
    reply = guarded.post("/v1/completions", prompt="a")
    assert reply.status_code == 429 and reply.headers["retry-after"] == "1"
    assert "takes 3 at a time" in reply.json()["error"]["message"]
    assert guarded.post("/v1/completions", prompt="a", n=4).status_code == 429
    assert all(len(listener.end()) > 1 for listener in listeners)
    assert guarded.post("/v1/completions", prompt="a", max_tokens=1).status_code == 200


def test_an_engine_that_dies_is_started_again(guarded: Running) -> None:
    listener = Listener(guarded).heard()
    signal_to(engine_of(guarded))
    *_, last = listener.end()
    assert "the engine died" in last["error"]["message"] and "send the request again" in last["error"]["message"]
    reply = guarded.post("/v1/completions", prompt="a")
    assert reply.status_code == 503 and reply.headers["retry-after"] == "2"
    assert guarded.http.get("/health").status_code == 503
    assert guarded.settled("engine_up", 1, within=90) and guarded.metric("engine_restarts") == 1
    assert guarded.post("/v1/completions", prompt="a", max_tokens=1).status_code == 200


def signal_to(process: int) -> None:
    import os

    os.kill(process, signal.SIGKILL)


def test_the_end_finds_every_stream_an_end(guarded: Running) -> None:
    listener = Listener(guarded).heard()
    guarded.process.send_signal(signal.SIGINT)
    *_, last = listener.end()
    assert last["error"]["message"] == "the server has stopped"
    assert guarded.process.wait(20) == 0


@pytest.mark.slow
def test_what_runs_is_finished(chat_dir: Path, start: Callable[..., Any]) -> None:
    with start(chat_dir, "--cache-tokens", "16384") as server:
        listener = Listener(server, max_tokens=300).heard()
        server.process.send_signal(signal.SIGTERM)
        *_, last = listener.end()
        assert last["choices"][0]["finish_reason"] == "length" and server.process.wait(20) == 0
