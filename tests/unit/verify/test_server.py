"""Servers that show log-probabilities of a prompt in one way or the other, and servers that go wrong."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import torch

from indexshare.verify.conventions import RIGHT, Conventions
from indexshare.verify.diagnose import Diagnostician
from indexshare.verify.forward import PlainForward
from indexshare.verify.observation import of_tokens
from indexshare.verify.server import ask_server
from tests.unit.verify.conftest import BY_NAME

Body = dict[str, Any]


class Server:
    """What a test changes: how the server computes, and what it does with a request."""

    def __init__(self, forward: PlainForward) -> None:
        self.forward, self.how = forward, RIGHT
        self.url = ""
        self.requests: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Callable[[Body], tuple[int, Any]] = self.echo
        self.models: Any = {"data": [{"id": "first"}, {"id": "second"}]}

    def logprobs(self, ids: list[int]) -> list[float]:
        return of_tokens(self.forward(torch.tensor(ids), self.how).logits.log_softmax(-1), ids).tolist()

    def echo(self, body: Body) -> tuple[int, Any]:
        """As vLLM and SGLang answer to echo: the prompt's tokens, then one more."""
        ids = body["prompt"]
        shown = {"token_logprobs": [None, *self.logprobs(ids), -1.5], "tokens": [spell(i) for i in [*ids, 0]]}
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return 200, {"choices": [{"text": "", "logprobs": shown if body.get("echo") else None}], "usage": usage}

    def prompt_logprobs(self, body: Body) -> tuple[int, Any]:
        """As vLLM answers to prompt_logprobs."""
        ids, choice = body["prompt"], dict[str, Any](text="a", logprobs=None)
        if body.get("logprobs"):
            choice["logprobs"] = {"token_logprobs": [-1.5], "tokens": ["a"]}
        if "prompt_logprobs" in body:
            rows = [{str(i): {"logprob": v, "rank": 1}, "7": {"logprob": -9.0}}
                    if i != 7 else {"7": {"logprob": v}}
                    for i, v in zip(ids[1:], self.logprobs(ids), strict=True)]  # fmt: skip
            choice["prompt_logprobs"] = [None, *rows]
        return 200, {"choices": [choice]}


def spell(token: int) -> str:
    return f" word{token}"


class _Handler(BaseHTTPRequestHandler):
    state: Server

    def log_message(self, *arguments: object) -> None:
        """Silence."""

    def _send(self, code: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.state.headers.append(dict(self.headers))
        self._send(200, self.state.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.state.requests.append(body)
        if body["model"] not in ("first", "second"):
            self._send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        else:
            self._send(*self.state.answer(body))


@pytest.fixture
def server(forward: PlainForward) -> Iterator[Server]:
    state = Server(forward)
    httpd = HTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": state}))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}"
    yield state
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def ids(forward: PlainForward) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(forward.config.vocab_size, (forward.config.index_topk + 24,), generator=generator).tolist()


def names(server: Server, ids: list[int], **options: Any) -> list[str]:
    seen = ask_server(server.url, ids, precision="float32", **options)
    return [h.name for h in Diagnostician(server.forward, seen).diagnose().found]


@pytest.mark.parametrize("way", ["echo", "prompt_logprobs"])
@pytest.mark.parametrize("fault", ["indexer-rope-layout", "routed-scale-missing", "sharing-ignored"])
def test_faults_are_named_both_ways(server: Server, ids: list[int], way: str, fault: str) -> None:
    server.answer = getattr(server, way)
    assert names(server, ids) == []
    server.how = BY_NAME[fault].on(Conventions())
    assert names(server, ids, spell=spell) == [fault]
    assert len(server.requests) == (2 if way == "echo" else 4)


def test_the_address_the_name_and_the_key(server: Server, ids: list[int]) -> None:
    server.url += "/v1/"
    assert names(server, ids, key="secret") == []
    assert server.requests[-1]["model"] == "first"
    assert server.headers[-1]["Authorization"] == "Bearer secret"
    assert names(server, ids, model="second") == []
    assert server.requests[-1]["model"] == "second"
    assert server.requests[-1]["prompt"] == ids


def test_a_server_that_refuses_echo_is_asked_in_the_other_way(server: Server, ids: list[int]) -> None:
    def answer(body: Body) -> tuple[int, Any]:
        refusal = {"error": {"message": "echo is not supported"}}
        return (400, refusal) if body.get("echo") else server.prompt_logprobs(body)

    server.answer = answer
    assert names(server, ids) == []


def refusal(server: Server, ids: list[int], **options: Any) -> str:
    with pytest.raises(ValueError, match=r"127\.0\.0\.1") as caught:
        ask_server(server.url, ids, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_another_name(server: Server, ids: list[int]) -> None:
    said = refusal(server, ids, model="other")
    assert "answered 404: The model `other` does not exist.; it has first, second, not 'other' (--model-name)" in said


@pytest.mark.parametrize("listed", [{}, {"data": []}, {"data": None}, {"data": [{"name": "x"}]}, {"data": ["x"]}])
def test_no_models(server: Server, ids: list[int], listed: Any) -> None:
    server.models = listed
    assert "lists no model; name it with --model-name" in refusal(server, ids)


def reply(change: Callable[[Body, Any], Any]) -> Callable[[Server], Callable[[Body], tuple[int, Any]]]:
    """The right answer to echo, changed."""

    def make(server: Server) -> Callable[[Body], tuple[int, Any]]:
        def answer(body: Body) -> tuple[int, Any]:
            _, right = server.echo(body)
            change(body, right)
            return 200, right

        return answer

    return make


def _cut(body: Body, right: Any) -> None:
    right["usage"]["prompt_tokens"] = 20


def _cut_silently(body: Body, right: Any) -> None:
    del right["usage"]
    shown = right["choices"][0]["logprobs"] or {}
    shown["token_logprobs"] = shown.get("token_logprobs", [])[-20:]


def _first_token_added(body: Body, right: Any) -> None:
    right["usage"]["prompt_tokens"] += 1


def _first_token_added_silently(body: Body, right: Any) -> None:
    del right["usage"]
    right["choices"][0]["logprobs"]["token_logprobs"].insert(1, -2.0)


def _other_text(body: Body, right: Any) -> None:
    right["choices"][0]["logprobs"]["tokens"] = [f"other{i}" for i in range(len(body["prompt"]) + 1)]


def _other_ids(body: Body, right: Any) -> None:
    shown = right["choices"][0]["logprobs"]
    shown["tokens"] = [f"token_id:{i}" for i in [body["prompt"][0] + 1, *body["prompt"][1:], 0]]


def _nothing_shown(body: Body, right: Any) -> None:
    right["choices"][0]["logprobs"] = None


def _not_finite(body: Body, right: Any) -> None:
    right["choices"][0]["logprobs"]["token_logprobs"][3] = float("-inf")


def _a_gap(body: Body, right: Any) -> None:
    right["choices"][0]["logprobs"]["token_logprobs"][3] = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_cut, "read 20 tokens of the 32 that were sent: its context is shorter, or it cut the prompt"),
        (_cut_silently, "read 20 tokens of the 32 that were sent: its context is shorter"),
        (_first_token_added, "read 33 tokens of the 32 that were sent: it adds tokens of its own"),
        (_first_token_added_silently, "read 33 tokens of the 32 that were sent: it adds tokens of its own"),
        (_other_text, "read other tokens than were sent, such as 'other0' for 'word"),
        (_other_ids, "read other tokens than were sent, such as"),
        (_nothing_shown, "returned no log-probabilities of the prompt; it must support echo with logprobs"),
        (_not_finite, "finite numbers of 0 or less; the one of token 3"),
        (_a_gap, "the one of token 3 (counted from 0) is None"),
    ],
)
def test_answers_that_are_about_something_else(
    server: Server, ids: list[int], change: Callable[[Body, Any], Any], message: str
) -> None:
    server.answer = reply(change)(server)
    assert message in refusal(server, ids, spell=spell)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((400, {"error": {"message": "maximum context length is 16 tokens"}}), "400: maximum context length is 16"),
        ((401, {"detail": "no key"}), "answered 401: no key"),
        ((500, b"<html>\nout of memory\n</html>"), "answered 500: <html> out of memory </html>"),
        ((200, b"<html>hello</html>"), "gave no usable answer"),
        ((200, []), "a JSON object was expected"),
        ((200, {"error": {"message": "busy"}}), "answered with an error: busy"),
        ((200, {"choices": []}), "no choices in it"),
        ((200, {"choices": [{"logprobs": {"token_logprobs": "x"}}]}), "returned no log-probabilities of the prompt"),
    ],
)
def test_answers_that_are_none(server: Server, ids: list[int], answer: tuple[int, Any], message: str) -> None:
    server.answer = lambda body: answer
    assert message in refusal(server, ids)


def test_other_tokens_in_prompt_logprobs(server: Server, ids: list[int]) -> None:
    def answer(body: Body) -> tuple[int, Any]:
        code, right = server.prompt_logprobs(body)
        if "prompt_logprobs" in body:
            right["choices"][0]["prompt_logprobs"][5] = {"999999": {"logprob": -1.0}}
        return code, right

    server.answer = answer
    assert f"read another token than {ids[5]} at place 5 of the prompt" in refusal(server, ids)


def test_nobody_there(ids: list[int]) -> None:
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9/v1/models gave no usable answer: .*refused.*running"):
        ask_server("http://127.0.0.1:9", ids)
    for url in ("localhost:8000", "ftp://x", "http://"):
        with pytest.raises(ValueError, match="expected an address such as http://localhost:8000"):
            ask_server(url, ids)
