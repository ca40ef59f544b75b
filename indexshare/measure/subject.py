"""What is measured: a model with its weights or with random ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from indexshare.checkpoint.load import load_model, parse_dtype
from indexshare.config import ModelConfig
from indexshare.config.shipped import find_config
from indexshare.engine.capacity import free_memory
from indexshare.model.glm import GlmMoeDsa
from indexshare.planner.memory import count_parameters


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model by name, before it is loaded.

    Attributes:
        name: as the user gave it.
        config: its sizes.
        source: `"shipped model"`, `"directory"`, `"configuration file"` or `"preset"`.
        directory: with weights, or None: then they are random.
        dtype: to load them in.
    """

    name: str
    config: ModelConfig
    source: str
    directory: Path | None
    dtype: torch.dtype

    @classmethod
    def find(cls, name: str, dtype: str | None = None) -> Subject:
        """By name, directory or config file; `dtype` float32 or bfloat16, by default as stored.

        Raises:
            ValueError: no such model, or another type.
        """
        config, source, directory = find_config(name)
        chosen = parse_dtype(config.dtype if dtype is None else dtype)
        if chosen not in (torch.float32, torch.bfloat16):
            raise ValueError(f"--dtype is {dtype or config.dtype}; this measures float32 and bfloat16")
        return cls(name=name, config=config, source=source, directory=directory, dtype=chosen)

    @property
    def element_bytes(self) -> int:
        """Bytes of one weight and of one value in the cache."""
        return torch.finfo(self.dtype).bits // 8

    def check_fits(self) -> None:
        """Refuse (ValueError) weights that do not fit the free memory."""
        needed = count_parameters(self.config).total * self.element_bytes
        free = free_memory(torch.device("cpu"))
        if needed > free:
            raise ValueError(
                f"the weights of {self.name} take {needed:,} bytes, and {free:,} are free; measure a smaller model, or "
                "the kernels alone in its shapes with --parts kernels"
            )

    def load(self) -> GlmMoeDsa:
        """The model in evaluation mode; random weights are the same every time.

        Raises:
            ValueError: weights that do not fit the free memory, or a checkpoint that is not whole.
        """
        self.check_fits()
        if self.directory is not None:
            return load_model(self.directory, dtype=self.dtype).eval()
        with torch.device("meta"):
            model = GlmMoeDsa(self.config).to(self.dtype)
        model = model.to_empty(device="cpu")
        for bias in model.buffers():  # of the routers; `initialise` leaves them as they are built
            bias.zero_()
        return model.initialise(0).eval()
