"""This package's own engine raises no alarm with any kernels; programs that are missing or fail are one clear line."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from indexshare.checkpoint.load import load_model
from indexshare.ops import registry
from indexshare.ops.native import LEVELS, processor_features
from indexshare.verify import others
from indexshare.verify.diagnose import Diagnosis, Diagnostician
from indexshare.verify.forward import PlainForward
from indexshare.verify.others import ask_llama_cpp, ask_ourselves, ask_transformers
from indexshare.verify.probe import probe_tokens
from tests.unit.verify.conftest import some_of

LEVEL_NAMES = [level.name for level in LEVELS]


def diagnose(forward: PlainForward, dtype: str = "float32", seed: int = 0) -> Diagnosis:
    """The engine on pico: half of what lies beyond `index_topk` is read, the other half written."""
    ids = probe_tokens(forward, seed=seed).tolist()
    return Diagnostician(forward, ask_ourselves(load_model("pico", dtype=dtype), ids[:-12], written=12)).diagnose()


@pytest.mark.parametrize("backend", [None, "torch", "reference"])
def test_no_alarm_for_any_implementation(trained: PlainForward, backend: str | None) -> None:
    with registry.force(backend) if backend else nullcontext():
        found = diagnose(trained)
    assert (found.verdict, found.found, found.program) == ("same", [], "indexshare")
    assert found.tokens == trained.config.index_topk + 24


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", some_of(range(3), {0}))
def test_no_alarm_in_any_type(trained: PlainForward, dtype: str, seed: int) -> None:
    found = diagnose(trained, dtype, seed)
    assert (found.verdict, found.found, found.precision) == ("same", [], dtype)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["pico", "nano"])
@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_no_alarm_at_any_level_of_the_kernels(level: str, name: str, precision: str) -> None:
    missing = LEVELS[LEVEL_NAMES.index(level)].needs - processor_features()
    if missing:
        pytest.skip(f"this processor has no {', '.join(sorted(missing))}")
    command = [sys.executable, "-m", "indexshare", "verify", name, "--engine", "--precision", precision, "--json"]
    done = subprocess.run(
        command, env=os.environ | {"INDEXSHARE_CPU_LEVEL": level}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["verdict"], facts["found"]) == ("same", [])


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> str:
        raise others.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(others.importlib.metadata, "version", absent)
    with pytest.raises(ValueError, match=r"transformers is not installed: pip install 'transformers>=5\.13'"):
        ask_transformers(tmp_path, [1, 2])
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ValueError, match=r"llama-cpp-python is not installed: pip install 'llama-cpp-python=="):
        ask_llama_cpp(tmp_path / "a.gguf", [1, 2])


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import sys; print('warning', file=sys.stderr); sys.exit('ValueError: too large')", "ValueError: too large"),
        ("import os; os._exit(7)", "exit code 7"),
        ("pass", "it gave no result"),
        ("import time; time.sleep(60)", "it took more than 1 s"),
    ],
)
def test_workers_that_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, message: str) -> None:
    (tmp_path / "transformers_worker.py").write_text(program)
    monkeypatch.setattr(others, "_WORKERS", tmp_path)
    monkeypatch.setattr(others, "_SECONDS", 1 if "sleep" in program else 60)
    with pytest.raises(ValueError, match=f"transformers could not run {tmp_path}: {message}"):
        ask_transformers(tmp_path, [1, 2])


def test_llama_cpp_on_an_exported_file(trained: PlainForward, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install llama-cpp-python==0.3.36")
    pytest.importorskip("gguf", reason="needs gguf")
    from indexshare.cli import main

    for kind, precision in (("bf16", "bfloat16"), ("q8_0", "q8_0")):
        file = tmp_path / f"pico-{kind}.gguf"
        assert main(["export", "pico", "--gguf", str(file), "--type", kind, "--no-tokenizer"]) == 0
        ids = probe_tokens(trained).tolist()
        found = Diagnostician(trained, ask_llama_cpp(file, ids, precision=precision)).diagnose()
        assert (found.verdict, found.found) == ("same", [])


def test_what_is_written_counts(trained: PlainForward) -> None:
    ids = probe_tokens(trained).tolist()
    seen = ask_ourselves(load_model("pico", dtype="float32"), ids[:-12], written=12)
    assert len(seen.token_ids) == len(ids)
    assert list(seen.token_ids[:-12]) == ids[:-12]
    assert seen.logprobs.shape == torch.Size([len(ids) - 1])
