"""A key that only summaries can carry over three compactions; demonstrations keep it in one of seven.

indexshare rl recipes/rl_memory.py
"""

from indexshare.rl.environment import byte_tokenizer
from indexshare.rl.recipe import Recipe, Warmup
from indexshare.rl.small import small_model
from indexshare.rl.tasks import MemoryChain


def recipe() -> Recipe:
    """The run."""
    tokenizer = byte_tokenizer()
    task = MemoryChain(tokenizer)
    return Recipe(
        name="rl-memory",
        model=small_model(tokenizer.vocab_size),
        task=task,
        warmup=Warmup(steps=600, rows=64, until=0.08),
        context=task.context,
        compaction=task.compaction,
        batch=64,
        steps=100,
    )
