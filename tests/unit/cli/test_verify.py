"""`indexshare verify` on a directory, against this package's own engine, a file and a server."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from indexshare.checkpoint.load import load_model
from indexshare.cli.verify import spans
from indexshare.verify.conventions import HYPOTHESES, RIGHT
from indexshare.verify.forward import PlainForward
from indexshare.verify.observation import of_tokens


class Faulty(BaseHTTPRequestHandler):
    """A server whose model rotates the indexer's other pairs."""

    forward: PlainForward
    echo = True

    def log_message(self, *arguments: object) -> None:
        """Silence."""

    def _send(self, body: dict[str, Any], code: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self._send({"data": [{"id": "faulty"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] != "faulty":
            self._send({"error": "no such model"}, 404)
            return
        ids = body["prompt"]
        fault = next(h for h in HYPOTHESES if h.name == "indexer-rope-layout")
        rows = self.forward(torch.tensor(ids), fault.on(RIGHT)).logits.log_softmax(-1)
        logprobs = [None, *of_tokens(rows, ids).tolist(), -1.0]
        self._send({"choices": [{"logprobs": {"token_logprobs": logprobs} if self.echo else None}]})


@pytest.fixture
def server(model_dir: Path) -> Iterator[str]:
    model = load_model(model_dir, dtype="float32")
    Faulty.forward, Faulty.echo = PlainForward(model.config, model.state_dict()), True
    httpd = HTTPServer(("127.0.0.1", 0), Faulty)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_a_directory_by_itself(run: Callable[..., Any], model_dir: Path) -> None:
    result = run("verify", model_dir)
    assert result.code == 0
    facts = json.loads(run("verify", model_dir, "--json").out)
    assert facts["ok"] is True


def test_the_engine_on_this_machine(run: Callable[..., Any], model_dir: Path) -> None:
    result = run("verify", model_dir, "--engine")
    assert result.code == 0
    assert "computes the same" in result.out
    facts = json.loads(run("verify", model_dir, "--engine", "--topk", 4, "--json").out)
    assert (facts["verdict"], facts["index_topk"], facts["tokens"]) == ("same", 4, 28)


def test_a_server_with_a_fault(run: Callable[..., Any], model_dir: Path, server: str) -> None:
    result = run("verify", model_dir, "--url", server, "--precision", "float32", "--tokens", 40)
    assert result.code == 1
    assert "indexer-rope-layout" in result.out
    assert "differs, and this explains it" in result.out


def test_a_server_that_shows_too_little(run: Callable[..., Any], model_dir: Path, server: str) -> None:
    Faulty.echo = False
    result = run("verify", model_dir, "--url", server)
    assert (result.code, result.out) == (2, "")
    assert "returned no log-probabilities of the prompt" in result.err
    said = run("verify", model_dir, "--url", server, "--model-name", "other").err
    assert "answered 404: no such model; it has faulty, not 'other' (--model-name)" in said


@pytest.mark.parametrize("name", ["draft-halves-swapped", "draft-hidden-before-norm", "draft-norm-missing", None])
def test_what_a_draft_layer_said(run: Callable[..., Any], tmp_path: Path, name: str | None) -> None:
    model = load_model("pico", dtype="float32")  # trained norms: with weights of one the second norm hides the first
    forward, ids = PlainForward(model.config, model.state_dict()), list(range(5, 150))
    how = next((h.on(RIGHT) for h in HYPOTHESES if h.name == name), RIGHT)
    trace = forward(torch.tensor(ids), how, draft=True)
    assert trace.draft_logits is not None
    said = of_tokens(trace.logits.log_softmax(-1), ids).tolist()
    drafted = of_tokens(trace.draft_logits.log_softmax(-1), ids[1:]).tolist()
    file = tmp_path / "text.json"
    file.write_text(json.dumps({"token_ids": ids, "logprobs": said, "draft_logprobs": [None, None, *drafted]}))
    result = run("verify", "pico", "--logprobs", file, "--json")
    assert result.code == (0 if name is None else 1)
    assert [found["name"] for found in json.loads(result.out)["found"]] == ([] if name is None else [name])


def test_a_program_run_by_hand(run: Callable[..., Any], model_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.json"
    result = run("verify", model_dir, "--write-ids", file, "--tokens", 40)
    assert result.code == 0
    assert f"indexshare verify {model_dir} --logprobs {file}" in result.out
    facts = json.loads(file.read_text())
    assert len(facts["token_ids"]) == 40
    assert json.loads(run("verify", model_dir, "--write-ids", file, "--json").out)["tokens"] == 32
    model = load_model(model_dir, dtype="float32")
    forward, ids = PlainForward(model.config, model.state_dict()), facts["token_ids"]
    for name, code in (("relu-missing", 1), (None, 0)):
        how = next((h.on(RIGHT) for h in HYPOTHESES if h.name == name), RIGHT)
        rows = forward(torch.tensor(ids), how).logits.log_softmax(-1)
        file.write_text(json.dumps(facts | {"logprobs": of_tokens(rows, ids).tolist()}))
        result = run("verify", model_dir, "--logprobs", file, "--json")
        said = json.loads(result.out)
        assert result.code == code
        assert [found["name"] for found in said["found"]] == ([name] if name else [])
        assert (said["tokens"], said["program"]) == (40, str(file))


def test_progress_is_told_and_json_stays_alone(run: Callable[..., Any], model_dir: Path) -> None:
    result = run("verify", model_dir, "--engine", "--json")
    assert [line.split(":")[0] for line in result.err.splitlines()] == [
        "choosing a text", "the other program", "comparing"
    ]  # fmt: skip
    json.loads(result.out)


def test_it_fits_a_narrow_page(run: Callable[..., Any], model_dir: Path, server: str) -> None:
    """Plain lines wrap where the reader's terminal does; tables must not be wider than 80 columns."""
    out = run("verify", model_dir, "--url", server, "--precision", "float32").out
    table = out[out.index("Nearest hypotheses") :]
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize(("numbers", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 6, 7, 10], "0-2, 6-7, 10")])
def test_numbers_of_layers_in_short(numbers: list[int], text: str) -> None:
    assert spans(numbers) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "--transformers"), "each name a program to compare with"),
        (("--topk", "4", "--gguf", "x.gguf"), "other programs have the configuration they were started with"),
        (("--engine", "--topk", "0"), "expected at least 1"),
        (("--engine", "--tokens", "9"), "give a longer text or a smaller --topk"),
        (("--engine", "--tokens", "99999"), "the model's context is 4096"),
        (("--url", "localhost:8000"), "expected an address such as http://localhost:8000"),
        (("--url", "http://127.0.0.1:9"), "gave no usable answer"),
        (("--logprobs", "absent.json"), "No such file"),
        (("--gguf", "absent.gguf"), "no GGUF file absent.gguf; make one with indexshare export"),
        (("--transformers-from", "absent"), "absent"),
        (("--write-ids", "absent/x.json"), "does not exist; create it first"),
        (("--write-ids", "NOTES"), "is a file of another kind, which would be lost"),
        (("--write-ids", "x.json", "--engine"), "only writes a text; give it without --engine"),
        (("--write-ids", "x.json", "--topk", "4"), "with --transformers or --engine"),
        (("--tokens", "40"), "choose a text for a program to compare with; name one"),
        (("--engine", "--seed", "9223372036854775808"), "--seed is 9223372036854775808; expected an integer from 0 to"),
        (("--logprobs", "x.json", "--seed", "1"), "brings its own text"),
        (("--tolerance", "1"), "of use with a program to compare with"),
        (("--precision", "float32"), "of use with a program to compare with"),
        (("--engine", "--precision", "q8_0"), "dtype is 'q8_0'; expected one of float64, float32"),
        (("--url", "http://127.0.0.1:9", "--precision", "int3"), "--precision is 'int3'; expected one of"),
        (("--url", "http://127.0.0.1:9", "--api-key-env", "NOT_SET_AT_ALL"), "'NOT_SET_AT_ALL', which is not set"),
        (("--engine", "--model-name", "x"), "--model-name is of use with --url only"),
    ],
)
def test_refusals(
    run: Callable[..., Any], model_dir: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("mine")
    result = run("verify", model_dir, *(str(notes) if word == "NOTES" else word for word in arguments))
    assert notes.read_text() == "mine"
    assert (result.code, result.out) == (2, "")
    assert message in result.err
