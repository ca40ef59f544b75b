"""Other programs, asked for the log-probabilities of a text: transformers, llama.cpp, servers, our own engine."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from indexshare.model.glm import GlmMoeDsa
from indexshare.verify.observation import Observation, check_logprobs

_WORKERS = Path(__file__).parent / "workers"
_SECONDS = 600
_NEEDS = {"transformers": "transformers>=5.13", "llama-cpp-python": "llama-cpp-python==0.3.36"}


def ask_transformers(
    directory: Path, token_ids: Sequence[int], *, index_topk: int | None = None, dtype: str = "float32"
) -> Observation:
    """The text under transformers, in a process of its own; `index_topk` changes the configuration there.

    Raises:
        ValueError: transformers is not installed, or cannot run the model; the text has its own words.
    """
    request = {"token_ids": list(token_ids), "index_topk": index_topk, "dtype": dtype}
    facts = _run("transformers", "transformers_worker.py", directory, request)
    return Observation.of_logits(
        "transformers", token_ids, facts["logits"], hidden=tuple(facts["hidden"]), precision=dtype
    )


def ask_llama_cpp(file: Path, token_ids: Sequence[int], *, precision: str = "bfloat16") -> Observation:
    """The text under llama.cpp, from a GGUF file, in a process of its own.

    Raises:
        ValueError: llama-cpp-python is not installed, or cannot run the file.
    """
    facts = _run("llama-cpp-python", "llama_cpp_worker.py", file, {"token_ids": list(token_ids)})
    return Observation.of_logits("llama.cpp", token_ids, facts["logits"], precision=precision)


def ask_ourselves(model: GlmMoeDsa, token_ids: Sequence[int]) -> Observation:
    """The text under this package's own model, with the kernels that run on this machine."""
    with torch.inference_mode():
        logits = model(torch.tensor([list(token_ids)]))[0]
    precision = str(logits.dtype).removeprefix("torch.")
    return Observation.of_logits("indexshare", token_ids, logits, precision=precision)


def ask_server(
    url: str, token_ids: Sequence[int], *, model: str | None = None, key: str | None = None, precision: str = "bfloat16"
) -> Observation:
    """The text under a server that speaks OpenAI's completions, with `echo` and token ids as the prompt.

    Args:
        url: of the server, with or without `/v1`.
        token_ids: the text.
        model: its name there; by default the first that the server lists.
        key: sent as a bearer token.
        precision: type that the server computes in.

    Raises:
        ValueError: no answer, or one without log-probabilities of the prompt.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"--url is {url!r}; expected an address such as http://localhost:8000")
    base = url.rstrip("/").removesuffix("/v1")
    if model is None:
        listed = _ask(f"{base}/v1/models", None, key).get("data") or [{}]
        model = listed[0].get("id")
        if not isinstance(model, str):
            raise ValueError(f"{base} lists no model; name it with --served-model")
    body = {
        "model": model, "prompt": list(token_ids), "max_tokens": 1, "temperature": 0.0, "echo": True, "logprobs": 1,
    }  # fmt: skip
    answer = _ask(f"{base}/v1/completions", body, key)
    try:
        values = answer["choices"][0]["logprobs"]["token_logprobs"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(
            f"{base} returned no log-probabilities of the prompt; it must support echo with logprobs in /v1/completions"
        ) from None
    values = values[: len(token_ids)]  # and the one token it had to write
    logprobs = check_logprobs(values, len(token_ids), base)
    return Observation(program=base, token_ids=tuple(token_ids), logprobs=logprobs, precision=precision)


def _ask(url: str, body: dict[str, Any] | None, key: str | None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
            answer = json.loads(reply.read())
    except urllib.error.HTTPError as error:
        said = " ".join(error.read().decode(errors="replace").split())[:300]
        raise ValueError(f"{url} answered {error.code}: {said or error.reason}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{url} gave no usable answer: {error}") from None
    if not isinstance(answer, dict):
        raise ValueError(f"{url} gave no usable answer: a JSON object was expected")
    return answer


def _run(package: str, worker: str, source: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What a worker saved. Its last line is the reason when it fails."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"{package} is not installed: pip install '{_NEEDS[package]}'") from None
    with tempfile.TemporaryDirectory() as folder:
        request_file, result_file = Path(folder) / "request.json", Path(folder) / "result.pt"
        request_file.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, str(_WORKERS / worker), str(source), str(request_file), str(result_file)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
        if done.returncode or not result_file.is_file():
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
            raise ValueError(f"{package} could not run {source}: {said[-1]}")
        facts: dict[str, Any] = torch.load(result_file, weights_only=True)
    return facts
