"""A folder of small source files, and recipes that train on it in seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexshare.config import ModelConfig
from indexshare.config.presets import preset
from indexshare.data.corpus import TextFolder
from indexshare.train.objectives import Balance, Draft, Indexer, NextToken
from indexshare.train.optim import OptimConfig
from indexshare.train.recipe import Recipe
from indexshare.train.stages import index_share, indexer_warmup, pretrain, sparse

ROWS = {"batch_tokens": 128, "micro_tokens": 64, "optim": OptimConfig(muon_lr=1e-2, adam_lr=1e-2)}


def write_sources(folder: Path) -> Path:
    """24 small files in three packages and at the top."""
    for number in range(24):
        package = folder / ("", "alpha", "beta", "gamma")[number % 4]
        package.mkdir(parents=True, exist_ok=True)
        body = "".join(f"def f{number}_{n}(x):\n    return x + {n * number + n}\n\n" for n in range(12))
        (package / f"file{number}.py").write_text(body)
    return folder


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def model_config() -> ModelConfig:
    """Four layers, Full at 0 and 1 and 2, a draft layer, 320 vocabulary entries."""
    return preset("tiny").replace(
        vocab_size=320,
        num_hidden_layers=4,
        indexer_types=("full", "full", "full", "shared"),
        mlp_layer_types=("dense", "sparse", "sparse", "sparse"),
    )


@pytest.fixture
def make_recipe(sources: Path, model_config: ModelConfig) -> Callable[..., Recipe]:
    """A recipe of all four stages with two updates each; keyword arguments replace fields of `Recipe`."""

    def make(**changes: Any) -> Recipe:
        full = (NextToken(), Draft(after=0.5), Balance())
        two = (NextToken(), Draft(steps=2), Indexer(), Balance())
        one = (NextToken(), Draft(), Indexer(), Balance())
        stages = (
            pretrain(tokens=256, sequence_length=32, objectives=full, **ROWS),
            indexer_warmup(tokens=256, sequence_length=32, **ROWS),
            sparse(tokens=256, sequence_length=32, objectives=two, **ROWS),
            index_share(model_config.share_plan, tokens=256, sequence_length=64, objectives=one, **ROWS),
        )
        fields: dict[str, Any] = {
            "name": "toy",
            "model": model_config,
            "text": TextFolder(path=str(sources), held_out=0.2),
            "stages": stages,
            "dtype": "float32",
            "held_out_windows": 2,
            "evaluate_every": 100,
        }
        return Recipe(**(fields | changes))

    return make
