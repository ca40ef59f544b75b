"""One tensor in a file of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch

CHUNK_BYTES = 16 * 2**20  # what a read or a write holds besides the tensor itself


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies: `begin` and `end` are byte positions in the file.

    In a GGUF file it may be `packed` in a type of ggml (`dtype` is then that of its values), and its rows may belong to
    `heads` and lie in another order there.
    """

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int
    packed: str = ""
    heads: int = 0

    @property
    def kind(self) -> str:
        """Its type for people."""
        return self.packed or str(self.dtype).removeprefix("torch.")
