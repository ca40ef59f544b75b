"""Tasks that ship: small enough to be learned in minutes, with rewards that a program decides."""

from indexshare.rl.tasks.arithmetic import Addition
from indexshare.rl.tasks.leaking import LeakingGrader
from indexshare.rl.tasks.memory import MemoryChain
from indexshare.rl.tasks.sorting import Sorting

__all__ = ["Addition", "LeakingGrader", "MemoryChain", "Sorting"]
