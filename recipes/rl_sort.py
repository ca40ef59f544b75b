"""Six letters in order: demonstrations until a quarter of the samples are right, then PPO from the reward alone.

indexshare rl recipes/rl_sort.py
"""

from indexshare.rl.environment import byte_tokenizer
from indexshare.rl.recipe import Recipe, Warmup
from indexshare.rl.small import small_model
from indexshare.rl.tasks import Sorting


def recipe() -> Recipe:
    """The run."""
    tokenizer = byte_tokenizer()
    return Recipe(
        name="rl-sort",
        model=small_model(tokenizer.vocab_size),
        task=Sorting(tokenizer),
        warmup=Warmup(steps=600, until=0.25),
        context=64,
    )
