"""A tiny model with a tokenizer on disk, and a way to run the command in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from indexshare.checkpoint.load import save_model
from indexshare.cli import main
from indexshare.config.presets import preset
from indexshare.model.glm import GlmMoeDsa
from indexshare.text.tokenizer import train_bpe


@dataclass(frozen=True)
class Result:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def run_command(*arguments: object) -> Result:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run_command


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `tiny` preset with random weights and a byte-level tokenizer of 320 entries."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = train_bpe(["def f(x):\n    return x\n"] * 4, 320)
    config = preset("tiny").replace(vocab_size=320, dtype="float32")
    model = GlmMoeDsa(config).initialise(seed=0)
    save_model(model, folder)
    tokenizer.save(folder)
    return folder


@pytest.fixture
def source_dir(tmp_path: Path) -> Path:
    """A small source tree with one file to complete, one that it imports, and one that is not text."""
    root = tmp_path / "project"
    (root / "lib").mkdir(parents=True)
    (root / "main.py").write_text("from lib.helper import double\n\n\ndef four():\n    return double(2)\n")
    (root / "lib" / "helper.py").write_text("def double(x):\n    return 2 * x\n")
    (root / "lib" / "other.py").write_text("\n".join(f"value_{n} = {n}" for n in range(200)) + "\n")
    (root / "logo.png").write_bytes(b"\x89PNG\0")
    return root
