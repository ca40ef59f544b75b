"""Requests through the engine: the time to read the prompt, and of every token written after it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from indexshare.config import ModelConfig
from indexshare.engine.llm import BLOCK_SIZE, LLM
from indexshare.engine.params import SamplingParams
from indexshare.engine.scheduler import PREFILL_CHUNK
from indexshare.measure.ceilings import Bound, Ceilings, bound_of
from indexshare.measure.timing import Spread
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.selection import FULL_ATTENTION
from indexshare.planner.flops import Work, cache_row_bytes, prefill_flops, step_bytes, token_flops
from indexshare.planner.memory import RowBytes


@dataclass(frozen=True, kw_only=True)
class Run:
    """One request: seconds to the first token, and seconds of each token after it."""

    prefill_s: float
    decode_s: tuple[float, ...]


def random_prompt(config: ModelConfig, length: int) -> list[int]:
    """`length` token ids, the same every time."""
    return torch.randint(config.vocab_size, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def engine_for(
    model: GlmMoeDsa, length: int, decode_tokens: int, *, full_attention: bool = False,
    caches: tuple[str | None, str | None] = (None, None),
) -> LLM:  # fmt: skip
    """An engine with a cache for one request of that size; `caches` are `cache_dtype` and `index_cache_dtype`."""
    return LLM(
        model, cache_tokens=length + decode_tokens + BLOCK_SIZE, cache_dtype=caches[0],
        index_cache_dtype=caches[1], prefill_chunk=PREFILL_CHUNK,
        full_attention_below=FULL_ATTENTION if full_attention else 0,
        prefix_cache=False,  # every reading of a prompt is one
    )  # fmt: skip


def request(
    llm: LLM, prompt: list[int], decode_tokens: int, *, on_prefill: Callable[[int, int], None] | None = None
) -> Run:
    """Read the prompt, write `decode_tokens` tokens after the first, and time them."""
    greedy = SamplingParams(max_tokens=decode_tokens + 1, temperature=0.0, ignore_eos=True)
    times, output = [], None
    for chunk in llm.stream(prompt, greedy, on_prefill=on_prefill):
        times.append(time.perf_counter())
        output = chunk.output
    assert output is not None and len(times) == decode_tokens + 1
    steps = tuple(after - before for before, after in itertools.pairwise(times))
    return Run(prefill_s=output.stats.prefill_s, decode_s=steps)


@dataclass(frozen=True, kw_only=True)
class SpeedResult:
    """One variant of the model at one length.

    Attributes:
        variant: `"model"` as it is, `"all-full"` or `"full-attention"`.
        length: prompt tokens, and the depth at which is decoded; 0 is decoding alone, after one token.
        prefill_s: of the whole prompt, None at length 0; decode_s: of one token.
        prefill, decode: how near the ceilings.
        prefill_flops: operations of the prompt by stage; decode_bytes: bytes that one token has to read, by stage.
    """

    variant: str
    length: int
    prefill_s: Spread | None
    decode_s: Spread
    prefill: Bound | None
    decode: Bound
    prefill_flops: Work | None
    decode_bytes: Work

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        facts: dict[str, Any] = {}
        for name, value in vars(self).items():
            facts[name] = value if value is None or isinstance(value, str | int) else value.to_dict()
        return facts


def speed_result(
    variant: str, config: ModelConfig, element_bytes: int, length: int, runs: list[Run], ceilings: Ceilings,
    row_bytes: RowBytes | None = None,
) -> SpeedResult:  # fmt: skip
    """Medians over runs (prefill) and over all tokens of all runs (decode), beside the ceilings.

    Full attention is counted in its expanded form, which needs fewer operations.
    """
    full = variant == "full-attention"
    decode_s = Spread.of(second for run in runs for second in run.decode_s)
    flops = token_flops(config, length + 1, full_attention=full, absorbed=not full).total
    prefill_s, prefill, work = None, None, None
    if length:
        prefill_s = Spread.of(run.prefill_s for run in runs)
        work = prefill_flops(config, length, full_attention=full, absorbed=not full)
        moved = prefill_bytes(config, element_bytes, length, row_bytes, full_attention=full)
        prefill = bound_of(work.total, moved, prefill_s.median, ceilings)
    read = _step(config, element_bytes, length + 1, 1, row_bytes, full_attention=full)
    return SpeedResult(
        variant=variant, length=length, prefill_s=prefill_s, decode_s=decode_s, prefill=prefill,
        decode=bound_of(flops, read.total, decode_s.median, ceilings), prefill_flops=work, decode_bytes=read,
    )  # fmt: skip


def prefill_bytes(
    config: ModelConfig, element_bytes: int, length: int, row_bytes: RowBytes | None = None,
    *, full_attention: bool = False,
) -> int:  # fmt: skip
    """Bytes that the engine's chunks have to read: the weights once for each, and the cache rows that are attended."""
    bounds = [*range(0, length, PREFILL_CHUNK), length]
    return sum(
        _step(config, element_bytes, stop, stop - start, row_bytes, full_attention=full_attention).total
        for start, stop in itertools.pairwise(bounds)
    )


def _step(
    config: ModelConfig,
    element_bytes: int,
    context: int,
    rows: int,
    row_bytes: RowBytes | None,
    *,
    full_attention: bool,
) -> Work:
    latent_row, index_key = cache_row_bytes(config, element_bytes, row_bytes)
    return step_bytes(
        config, context, rows=rows, weight_bytes=element_bytes, latent_row_bytes=latent_row,
        index_key_bytes=index_key, full_attention=full_attention,
    )  # fmt: skip
