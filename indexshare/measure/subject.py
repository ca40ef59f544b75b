"""What is measured: a model with its weights or with random ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from indexshare.cache.codecs import codec_name, codecs_by_stream, row_bytes
from indexshare.checkpoint.load import load_model, parse_dtype
from indexshare.config import ModelConfig
from indexshare.config.shipped import find_config
from indexshare.engine.capacity import free_memory
from indexshare.model.glm import GlmMoeDsa
from indexshare.planner.memory import RowBytes, count_parameters


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model by name, before it is loaded.

    Attributes:
        name: as the user gave it.
        config: its sizes.
        source: `"shipped model"`, `"directory"`, `"configuration file"` or `"preset"`.
        directory: with weights, or None: then they are random.
        dtype: to load them in.
        cache_dtype, index_cache_dtype: how the cache keeps past tokens, as in `LLM`.
    """

    name: str
    config: ModelConfig
    source: str
    directory: Path | None
    dtype: torch.dtype
    cache_dtype: str | None = None
    index_cache_dtype: str | None = None

    @classmethod
    def find(
        cls, name: str, dtype: str | None = None, cache_dtype: str | None = None, index_cache_dtype: str | None = None
    ) -> Subject:
        """By name, directory or config file; `dtype` float32 or bfloat16, by default as stored.

        Raises:
            ValueError: no such model, or another type.
        """
        cache_dtype = codec_name("--cache-dtype", cache_dtype)
        index_cache_dtype = codec_name("--index-cache-dtype", index_cache_dtype)
        config, source, directory = find_config(name)
        chosen = parse_dtype(config.dtype if dtype is None else dtype)
        if chosen not in (torch.float32, torch.bfloat16):
            raise ValueError(f"--dtype is {dtype or config.dtype}; this measures float32 and bfloat16")
        return cls(
            name=name, config=config, source=source, directory=directory, dtype=chosen, cache_dtype=cache_dtype,
            index_cache_dtype=index_cache_dtype,
        )  # fmt: skip

    @property
    def element_bytes(self) -> int:
        """Bytes of one weight."""
        return torch.finfo(self.dtype).bits // 8

    @property
    def row_bytes(self) -> RowBytes:
        """Bytes of a row of a cache stream."""
        return row_bytes(codecs_by_stream(self.config, self.cache_dtype, self.index_cache_dtype), self.dtype)

    @property
    def caches(self) -> tuple[str | None, str | None]:
        """How the cache keeps everything, and index keys: for `runs.engine_for`."""
        return self.cache_dtype, self.index_cache_dtype

    @property
    def has_kernels(self) -> bool:
        """Whether kernels can be measured alone in its shapes: those of the selection and of latent attention."""
        return self.config.selects and self.config.variant.attention.kind == "mla"

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
