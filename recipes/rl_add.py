"""Sums of two numbers of two digits, written from the last digit on: as `rl_sort.py`, with another task.

indexshare rl recipes/rl_add.py
"""

from indexshare.rl.environment import byte_tokenizer
from indexshare.rl.recipe import Recipe, Warmup
from indexshare.rl.small import small_model
from indexshare.rl.tasks import Addition


def recipe() -> Recipe:
    """The run."""
    tokenizer = byte_tokenizer()
    return Recipe(
        name="rl-add",
        model=small_model(tokenizer.vocab_size),
        task=Addition(tokenizer),
        warmup=Warmup(steps=600, until=0.2),
        context=64,
    )
