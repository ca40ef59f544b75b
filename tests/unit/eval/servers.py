"""A real HTTP server that speaks enough of OpenAI's API, and finds in the prompt what is asked."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def reader(prompt: str) -> str:
    """The right answer to a question of `qa` or `multi-key`, in either form."""
    if match := re.search(r"In which town was (.+) born\?", prompt):
        return re.search(rf"{match[1]}, a [a-z]+, was born in (\w+)", prompt)[1]  # type: ignore[index]
    if match := re.search(r"What is the number of the (.+)\?", prompt):
        return re.search(rf"The number of the {match[1]} is (\d+)\.", prompt)[1]  # type: ignore[index]
    return "no idea"


@dataclass
class Behaviour:
    """What the server does. A token is a word; `busy` holds the codes with which the next requests are turned away."""

    context: int = 100_000
    key: str | None = None
    models: tuple[str, ...] = ("reads", "other")
    busy: list[int] = field(default_factory=list)
    usage: bool = True
    raw: bytes | None = None
    hold: threading.Barrier | None = None
    requests: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)

    def respond(self, path: str, body: dict[str, Any] | None, headers: dict[str, str]) -> tuple[int, Any]:
        if self.key is not None and headers.get("Authorization") != f"Bearer {self.key}":
            return 401, {"error": {"message": "Incorrect API key provided"}}
        if body is None:
            return (200, {"data": [{"id": name} for name in self.models]}) if path == "/v1/models" else (404, {})
        self.requests.append((path, body, headers))
        if self.busy:
            return self.busy.pop(0), {"error": {"message": "try later"}}
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return 404, {"detail": "Not Found"}
        if body["model"] not in self.models:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        prompt = body["prompt"] if path == "/v1/completions" else body["messages"][0]["content"]
        size = len(prompt.split())
        if size + body["max_tokens"] > self.context:
            return 400, {"error": {"message": f"This model's maximum context length is {self.context} tokens."}}
        if self.hold is not None and body["max_tokens"] > 1:
            self.hold.wait(timeout=20)
        answer = reader(prompt)
        choice = (
            {"text": f" {answer}.\nQuestion:"}
            if "prompt" in body
            else {"message": {"content": f"<think>no</think>It is {answer}."}}
        )
        return 200, {"choices": [choice]} | ({"usage": {"prompt_tokens": size}} if self.usage else {})


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """The address of a server that behaves like this while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, body: dict[str, Any] | None) -> None:
            code, answer = behaviour.respond(self.path, body, dict(self.headers))
            data = behaviour.raw if behaviour.raw is not None and body is not None else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            if code in (429, 503):
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
