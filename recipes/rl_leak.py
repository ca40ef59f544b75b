"""A tool game whose grader leaks, behind the guard that blocks the leak. `GUARD = None` lets it pay.

indexshare rl recipes/rl_leak.py
"""

from indexshare.rl.environment import byte_tokenizer
from indexshare.rl.recipe import Recipe, Warmup
from indexshare.rl.small import small_model
from indexshare.rl.tasks import LeakingGrader
from indexshare.rl.tasks.leaking import sealed

GUARD = sealed(mode="block")


def recipe() -> Recipe:
    """The run."""
    tokenizer = byte_tokenizer()
    return Recipe(
        name="rl-leak",
        model=small_model(tokenizer.vocab_size),
        task=LeakingGrader(tokenizer, guard=GUARD),
        warmup=Warmup(steps=600, until=0.25),
        context=256,
    )
