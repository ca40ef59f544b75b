"""Every verb on a dense model: what runs, and what says why it does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexshare import SharePlan, load_model, save_model
from indexshare.checkpoint.surgery import add_indexers
from indexshare.config import ModelConfig
from indexshare.config.shipped import shipped_models
from indexshare.measure import ceilings, report
from indexshare.model.glm import GlmMoeDsa

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model with the tokenizer of a shipped one."""
    folder, pico = tmp_path_factory.mktemp("dense"), shipped_models()["pico"]
    sizes = {
        "model_type": "llama", "vocab_size": ModelConfig.load(pico).vocab_size, "hidden_size": 32, "dtype": "float32",
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    save_model(GlmMoeDsa(ModelConfig.from_dict(sizes)).initialise(1), folder, tokenizer_dir=pico)
    return folder


def test_it_writes_and_scores(run: Run, dense: Path, tmp_path: Path) -> None:
    written = run("generate", dense, "def f(", "--max-tokens", 4, "--temperature", 0, "--json")
    assert written.code == 0 and "completion_tokens" in written.out
    text = tmp_path / "a.py"
    text.write_text("x = 1\nfor i in range(x):\n    print(i)\n")
    assert run("complete", f"{text}:2", "--model", dense, "--max-tokens", 4, "--no-cache-dir").code == 0
    scored = run("score", text, "--model", dense, "--json")
    assert scored.code == 0 and json.loads(scored.out)


def test_it_is_planned(run: Run, dense: Path) -> None:
    shown = run("plan", dense, "--context", 512, "--hardware", "h200", "--explain")
    assert shown.code == 0 and "with an indexer in every layer" not in shown.out
    assert "4 heads of queries, 2 of keys and values" in shown.out
    facts = json.loads(run("plan", dense, "--context", 512, "--hardware", "h200", "--json").out)
    assert facts["flops_per_token"]["stages"]["scores"] == 0
    assert facts["cache_bytes_per_token"]["bf16"] == 2 * 2 * 2 * 16
    assert facts["index_key_values_per_token"] == {"with_sharing": 0, "without": 0}


def test_it_is_measured(run: Run, dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = ceilings.ceiling_jobs
    monkeypatch.setattr(report, "ceiling_jobs", lambda dtype: jobs(dtype, size=64, buffer_bytes=1 << 16))
    small = ("--lengths", 24, "--repeats", 1, "--decode-tokens", 2, "--threads", 1)
    result = run("bench", dense, *small, "--json")
    facts = json.loads(result.out)
    assert result.code == 0 and facts["gate"]["passed"]
    assert [check["what"] for check in facts["gate"]["checks"]] == ["attention", "engine"]
    assert {row["variant"] for row in facts["speed"]} == {"model"} and facts["kernels"] == []
    assert facts["model"]["pattern"] is facts["model"]["index_topk"] is None
    refused = run("bench", dense, *small, "--parts", "kernels")
    assert refused.code != 0 and "attention 'gqa', selection 'everything': leave kernels out" in refused.err


def test_one_with_indexers_is_measured(run: Run, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = ceilings.ceiling_jobs
    monkeypatch.setattr(report, "ceiling_jobs", lambda dtype: jobs(dtype, size=64, buffer_bytes=1 << 16))
    plan = SharePlan.from_pattern("FS")
    save_model(add_indexers(load_model(dense), plan, heads=4, width=8, topk=16), tmp_path / "own")
    small = ("--lengths", 40, "--repeats", 1, "--decode-tokens", 2, "--threads", 1, "--parts", "speed")
    facts = json.loads(run("bench", tmp_path / "own", *small, "--json").out)
    assert facts["gate"]["passed"] and facts["model"]["pattern"] == "FS"
    whats = ["selected score mass", "selection", "attention", "sparse attention", "engine"]
    assert [check["what"] for check in facts["gate"]["checks"]] == whats
    assert {row["variant"] for row in facts["speed"]} == {"model", "all-full", "full-attention"}
    shown = run("info", tmp_path / "own").out
    assert "2: 1 Full (run an indexer), 1 Shared" in shown and "top 16 tokens per query" in shown


def test_what_is_of_latent_attention_says_so(run: Run, dense: Path, tmp_path: Path) -> None:
    assert run("verify", dense).code == 0
    assert "has attention of the kind 'gqa'; verify compares" in run("verify", dense, "--engine").err
    refused = run("export", dense, "--gguf", tmp_path / "x.gguf").err
    assert "llama.cpp cannot run this model" in refused or "GGUF" in refused


def test_it_is_evaluated(run: Run, dense: Path) -> None:
    """There is one kind of attention; the control of a selection would be the same."""
    facts = json.loads(run("eval", dense, "--suite", "needle", "--lengths", 512, "--samples", 1, "--json").out)
    assert "full" in json.dumps(facts) and "recent" not in json.dumps(facts)
    refused = run("eval", dense, "--suite", "needle", "--lengths", 512, "--attention", "recent")
    assert "attention is 'recent', but the model attends to everything" in refused.err
