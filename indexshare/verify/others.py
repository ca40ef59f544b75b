"""Other programs, asked for the log-probabilities of a text: transformers, llama.cpp, our own engine.

Servers are asked in `server.py`, files read in `observation.py`.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from indexshare.cache.view import InFlightView
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.model.glm import GlmMoeDsa
from indexshare.verify.observation import LayerStates, Observation

_WORKERS = Path(__file__).parent / "workers"
_SECONDS = 600
_NEEDS = {"transformers": "transformers>=5.13", "llama-cpp-python": "llama-cpp-python==0.3.36"}
_CHUNK = 64  # tokens that our engine reads at a time: several chunks even in short texts


def ask_transformers(
    directory: Path, token_ids: Sequence[int], *, index_topk: int | None = None, dtype: str = "float32"
) -> Observation:
    """The text under transformers, in a process of its own, with every layer's states and choices.

    `index_topk` changes the configuration there.

    Raises:
        ValueError: transformers is not installed, or cannot run the model; the text has its own words.
    """
    request = {"token_ids": list(token_ids), "index_topk": index_topk, "dtype": dtype}
    facts = _run("transformers", "transformers_worker.py", directory, request)
    return Observation.of_logits(
        "transformers", token_ids, facts["logits"], layers=_layers(facts, len(token_ids)), precision=dtype
    )


def _layers(facts: dict[str, Tensor], tokens: int) -> tuple[LayerStates, ...] | None:
    """From states `[L, S, H]` and chosen tokens `[L, S, k]`; None where the worker could not look into the layers."""
    if "before" not in facts:
        return None
    causal = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    states = zip(facts["before"], facts["between"], facts["after"], facts["chosen"], strict=True)
    return tuple(
        LayerStates(
            before=before, between=between, after=after,
            chosen=torch.zeros_like(causal).scatter(1, ids.long(), True) & causal,
        )
        for before, between, after, ids in states
    )  # fmt: skip


def ask_llama_cpp(file: Path, token_ids: Sequence[int], *, precision: str = "bfloat16") -> Observation:
    """The text under llama.cpp, from a GGUF file, in a process of its own.

    Raises:
        ValueError: llama-cpp-python is not installed, or cannot run the file.
    """
    facts = _run("llama-cpp-python", "llama_cpp_worker.py", file, {"token_ids": list(token_ids)})
    return Observation.of_logits("llama.cpp", token_ids, facts["logits"], precision=precision)


def ask_ourselves(model: GlmMoeDsa, token_ids: Sequence[int], *, written: int = 0) -> Observation:
    """A text under this package's own engine, with the kernels that run on this machine.

    The text is read in chunks through the paged cache, as prompts are; then the engine writes tokens of its own.

    Args:
        model: in its own type, on its own device.
        token_ids: the beginning of the text.
        written: tokens that the engine adds, one decode step for each.
    """
    ids = list(token_ids)
    llm = LLM(model, max_context=len(ids) + written, prefill_chunk=_CHUNK)
    logprobs = [token.logprob for token in llm.engine.score(ids, 1)]
    if written:
        params = SamplingParams(max_tokens=written, temperature=1.0, seed=0, ignore_eos=True, logprobs=0)
        (output,) = llm.generate([ids], params)
        ids += output.token_ids
        logprobs += [token.logprob for token in output.logprobs or ()]
    precision = str(next(model.parameters()).dtype).removeprefix("torch.")
    return Observation(
        program="indexshare", token_ids=tuple(ids), logprobs=torch.tensor(logprobs), precision=precision,
        draft_rows=_drafts(model, ids) if model.mtp is not None else None,
    )  # fmt: skip


@torch.no_grad()
def _drafts(model: GlmMoeDsa, token_ids: Sequence[int]) -> Tensor:
    """Log-probabilities `[S - 1, V]` of the draft layer's first step over a text."""
    assert model.mtp is not None
    ids = torch.tensor(token_ids, device=model.embed_tokens.weight.device)
    hidden = model.trunk(ids, InFlightView([len(ids)]))
    drafted = model.mtp(model.embed_tokens(ids[1:]), hidden[:-1], InFlightView([len(ids) - 1]))
    return model.logits(drafted.hidden).float().log_softmax(-1).cpu()


def require(package: str) -> None:
    """Refuse (ValueError) to go on without a package that a worker needs."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"{package} is not installed: pip install '{_NEEDS[package]}'") from None


def _run(package: str, worker: str, source: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What a worker saved. Its last line is the reason when it fails."""
    require(package)
    with tempfile.TemporaryDirectory() as folder:
        request_file, result_file = Path(folder) / "request.json", Path(folder) / "result.pt"
        request_file.write_text(json.dumps(request), encoding="utf-8")
        refusal = _work(worker, [str(source), str(request_file), str(result_file)])
        if refusal is not None or not result_file.is_file():
            raise ValueError(f"{package} could not run {source}: {refusal or 'it gave no result'}")
        facts: dict[str, Any] = torch.load(result_file, weights_only=True)
    return facts


def _work(worker: str, arguments: list[str]) -> str | None:
    """Run a worker to its end: None, or why it failed."""
    command = [sys.executable, str(_WORKERS / worker), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"it took more than {_SECONDS} s"
    said = (done.stderr.strip() or done.stdout.strip()).splitlines() or [f"exit code {done.returncode}"]
    return said[-1] if done.returncode else None
