"""A tiny model with an indexer in every layer, one that shares, and a text, on disk."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from indexshare.checkpoint.load import save_model
from indexshare.checkpoint.surgery import all_full
from indexshare.cli import main
from indexshare.config import ModelConfig
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


def noisy(config: ModelConfig, seed: int = 0) -> GlmMoeDsa:
    """Random weights large enough that layers differ in what they choose."""
    model = GlmMoeDsa(config).initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "lm_head" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.fixture(scope="session")
def sharing_config() -> ModelConfig:
    """Six layers FFFSSS, eight tokens chosen, 320 vocabulary entries."""
    return preset("tiny").replace(vocab_size=320, dtype="float32")


@pytest.fixture(scope="session")
def full_config(sharing_config: ModelConfig) -> ModelConfig:
    return all_full(sharing_config)


@pytest.fixture(scope="session")
def full_model(full_config: ModelConfig) -> GlmMoeDsa:
    return noisy(full_config)


@pytest.fixture(scope="session")
def sharing_model(sharing_config: ModelConfig) -> GlmMoeDsa:
    return noisy(sharing_config)


@pytest.fixture(scope="session")
def full_dir(full_model: GlmMoeDsa, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "full"
    save_model(full_model, folder)
    train_bpe(["def f(x):\n    return x\n"] * 4, 320).save(folder)
    return folder


@pytest.fixture(scope="session")
def text_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small files."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(12):
        body = "".join(f"def f{number}_{n}(x):\n    return x + {n * number}\n\n" for n in range(6))
        (folder / f"file{number}.py").write_text(body)
    return folder


@pytest.fixture
def windows() -> torch.Tensor:
    """Three windows of 40 random tokens."""
    return torch.randint(0, 320, (3, 40), generator=torch.Generator().manual_seed(1))
