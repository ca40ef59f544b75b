"""A key that must outlive several compactions: the summary has to carry it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from hashlib import blake2b

from indexshare.rl.compaction import Compaction
from indexshare.rl.environment import Environment, Opening, Reply, Task
from indexshare.text.tokenizer import Tokenizer

_LETTERS = "abcdefgh"


class MemoryChain(Task):
    """Digits are shown once, then letters that must be repeated one by one; at the end `?` asks for the digits.

    With the context of `context` and the compaction of `compaction`, the key is out of sight behind the first
    compaction, and only summaries can carry it on: `compactions` times, with many trained tokens behind each. The
    copied letters earn nothing; the key at the end earns 1.

    Args:
        tokenizer: of the model.
        digits: of the key.
        tail: letters repeated in each segment.
        compactions: between key and question.
        keeping: part of the demonstrations whose summaries hold the key; the others hold noise.
    """

    name = "memory"

    def __init__(
        self, tokenizer: Tokenizer, digits: int = 2, tail: int = 8, compactions: int = 3, keeping: float = 0.15
    ) -> None:
        super().__init__(tokenizer)
        if min(digits, tail, compactions) < 1 or not 0.0 <= keeping <= 1.0:
            raise ValueError(
                f"digits {digits}, tail {tail}, compactions {compactions}, keeping {keeping}; expected at least 1 of "
                "the first three and a part between 0 and 1"
            )
        self.digits, self.tail, self.compactions, self.keeping = digits, tail, compactions, keeping
        self.turn_tokens = max(2, digits + 1)
        self.max_turns = tail * (compactions + 1) + 1

    @property
    def compaction(self) -> Compaction:
        """What goes with the task: a summary as long as the key, and the last step, whose letter is to be copied."""
        return Compaction(
            reserve=self.turn_tokens + self.digits + 3, instruction=tuple(self.spell("#")),
            resume=tuple(self.spell("!")), summary_tokens=self.digits + 1, keep=1, most=self.compactions,
        )  # fmt: skip

    @property
    def context(self) -> int:
        """Tokens of a segment, such that one is full after a tail of letters: a turn has 3 tokens, a letter shown, and
        the letter and a stop id sampled. (The first segment, which begins with less, holds one turn more.)
        """
        return 3 * self.tail + self.digits + 2 + self.compaction.reserve

    def environment(self, number: int, *, held_out: bool = False) -> Environment:
        """The problem of a number; which keys are held out is decided by the key and the letters together."""
        rng = random.Random(f"memory/{held_out}/{number}")
        while True:
            key = "".join(rng.choices("0123456789", k=self.digits))
            letters = "".join(rng.choices(_LETTERS, k=self.max_turns - 1))
            digest = blake2b(f"{key}/{letters}".encode(), digest_size=4).digest()
            if (digest[0] % 8 == 0) == held_out:
                return _Chain(self, key, letters, random.Random(f"memory/summaries/{number}"))


class _Chain(Environment):
    def __init__(self, task: MemoryChain, key: str, letters: str, rng: random.Random) -> None:
        self._task, self._key, self._letters, self._rng = task, key, letters, rng
        self._turn = 0
        self._kept = rng.random() < task.keeping
        self._right = 0

    def _shown(self) -> str:
        return self._letters[self._turn] if self._turn < len(self._letters) else "?"

    def reset(self) -> Opening:
        return Opening(user=self._task.spell(self._key + self._shown()))

    def step(self, action: Sequence[int]) -> Reply:
        text = self._task.read(action)
        if self._turn == len(self._letters):
            right = text == self._key
            return Reply(
                reward=float(right), done=True, details={"correct": right, "copied": self._right / len(self._letters)}
            )
        self._right += text == self._letters[self._turn]
        self._turn += 1
        return Reply(tokens=self._task.spell(self._shown()))

    def expert(self) -> list[int]:
        return self._task.answer(self._key if self._turn == len(self._letters) else self._letters[self._turn])

    def expert_summary(self) -> list[int]:
        noise = "".join(self._rng.choices("0123456789", k=self._task.digits))
        return self._task.answer(self._key if self._kept else noise)
