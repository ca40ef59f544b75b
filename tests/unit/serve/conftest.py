"""A tiny random model that follows GLM-5.2's format, and servers around it: real processes on free ports."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexshare.checkpoint.save import save_model
from indexshare.config.presets import preset
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.chat_template import glm_template
from indexshare.text.tokenizer import train_bpe

NAMES = [
    "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<think>",
    "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
    "<tool_response>", "</tool_response>",
]  # fmt: skip
ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    url: str
    process: "subprocess.Popen[str]"
    http: httpx.Client

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"indexshare_{name}"))

    def settled(self, name: str, value: float, within: float = 20.0) -> bool:
        """Whether a metric comes to a value in time."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            if self.metric(name) == value:
                return True
            time.sleep(0.05)
        return False


@pytest.fixture(scope="session")
def chat_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model: random weights, 336 tokens, GLM-5.2's template, a context of 4,096."""
    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    tokenizer = train_bpe(["def f(x):\n    return x\n\nIt is a town, and so on.\n"] * 4, 330, NAMES)
    ends = [tokenizer.id_of(name) for name in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    config = preset("tiny").replace(
        vocab_size=336, dtype="float32", eos_token_id=tuple(ends), max_position_embeddings=4096
    )
    save_model(GlmMoeDsa(config).initialise(seed=0), folder)
    tokenizer.save(folder)
    (folder / "chat_template.jinja").write_text(glm_template().source, encoding="utf-8")
    return folder


@contextmanager
def running_server(model: Path, *options: str, **environment: str) -> Iterator[Running]:
    """A server of its own, ended in the polite way."""
    command = [sys.executable, "-m", "indexshare", "serve", str(model), "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | environment)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), "the server did not start"
        with httpx.Client(base_url=url, timeout=60) as http:
            yield Running(url, process, http)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.fixture(scope="session")
def server(chat_dir: Path) -> Iterator[Running]:
    """One server for all tests that leave it as it was."""
    with running_server(chat_dir, "--cache-tokens", "16384", "--grace", "2") as running:
        yield running


@pytest.fixture(scope="session")
def start() -> Callable[..., Any]:
    return running_server
