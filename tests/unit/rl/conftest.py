"""A run of a few tiny updates, on contexts longer than the selection."""

from collections.abc import Callable
from typing import Any

import pytest

from indexshare.config.presets import preset
from indexshare.rl.environment import byte_tokenizer
from indexshare.rl.recipe import Recipe, Warmup, adam
from indexshare.rl.tasks import Sorting


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """Two updates on 4 rollouts each; keyword arguments replace fields of `Recipe`."""

    def make(**changes: Any) -> Recipe:
        tokenizer = byte_tokenizer()
        config = preset("tiny").replace(vocab_size=tokenizer.vocab_size, initializer_range=0.05, dtype="float32")
        fields: dict[str, Any] = {
            "name": "try",
            "model": config.replace(max_position_embeddings=64),
            "task": Sorting(tokenizer, 12, "ab"),
            "warmup": Warmup(steps=2, every=2, rows=4, until=1e-9, optim=adam(1e-2)),
            "steps": 2, "batch": 4, "value_steps": 1, "evaluate_problems": 2, "evaluate_every": 2, "context": 40,
            "optim": adam(1e-3), "critic_optim": adam(1e-3), "keep_rollouts_every": 1,
            "seed": 5,  # whose coin flips differ in every batch
        }  # fmt: skip
        return Recipe(**(fields | changes))

    return make
