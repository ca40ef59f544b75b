"""The fused indexer and sparse attention alone, in a model's shapes: many queries as in prefill, one as in decoding."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from indexshare import ops
from indexshare.config import ModelConfig
from indexshare.measure.ceilings import BUFFER_BYTES, Bound, Ceilings, bound_of
from indexshare.measure.operands import AttentionOperands, IndexOperands
from indexshare.measure.timing import Spread, seconds_per_call
from indexshare.planner.flops import attention_flops, cache_row_bytes, score_flops

PREFILL_ROWS = 512  # enough for every thread to have many


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel on fixed operands.

    Attributes:
        name: for people.
        rows: queries; context: keys of the last one.
        flops, num_bytes: operations of one call, and the least it has to read.
        seconds: measures one call.
    """

    name: str
    rows: int
    context: int
    flops: int
    num_bytes: int
    seconds: Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class KernelResult:
    """What a kernel reached. `seconds` are of one call."""

    kernel: Kernel
    seconds: Spread
    bound: Bound

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        facts = {name: getattr(self.kernel, name) for name in ("name", "rows", "context", "flops", "num_bytes")}
        return facts | {"seconds": self.seconds.to_dict()} | self.bound.to_dict()


def kernels(config: ModelConfig, dtype: torch.dtype, context: int, *, buffer_bytes: int = BUFFER_BYTES) -> list[Kernel]:
    """Indexer and sparse attention at `context` keys (more than `index_topk`), for prefill and for decoding.

    Decoding reads different keys with every call, more than the processor's caches hold: in a model other layers run in
    between.
    """
    latent_row, index_key = cache_row_bytes(config, torch.finfo(dtype).bits // 8)
    found = []
    for rows in (min(PREFILL_ROWS, context - config.index_topk), 1):
        stage = "decode" if rows == 1 else "prefill"
        copies = -(-buffer_bytes // (context * index_key)) if rows == 1 else 1
        indexes = [IndexOperands.random(config, dtype, rows, context, seed) for seed in range(copies)]
        pairs = sum(range(context - rows + 1, context + 1))
        found.append(
            Kernel(
                name=f"indexer, {stage}", rows=rows, context=context, flops=score_flops(config, pairs),
                num_bytes=context * index_key, seconds=_timer(ops.select_topk, indexes),
            )
        )  # fmt: skip
        slots = ops.select_topk(*indexes[0])
        copies = -(-buffer_bytes // (context * latent_row)) if rows == 1 else 1
        attentions = [AttentionOperands.random(config, dtype, slots, context, seed) for seed in range(copies)]
        chosen = rows * config.index_topk
        found.append(
            Kernel(
                name=f"sparse attention, {stage}", rows=rows, context=context, flops=attention_flops(config, chosen),
                num_bytes=min(chosen, context) * latent_row, seconds=_timer(ops.sparse_mla, attentions),
            )
        )  # fmt: skip
    return found


def _timer(operation: Callable[..., Any], operands: list[Any]) -> Callable[[], float]:
    turn = itertools.cycle(operands)
    return lambda: seconds_per_call(lambda: operation(*next(turn)))


def kernel_result(kernel: Kernel, seconds: list[float], ceilings: Ceilings) -> KernelResult:
    """Beside the ceilings of the same run."""
    spread = Spread.of(seconds)
    return KernelResult(
        kernel=kernel, seconds=spread, bound=bound_of(kernel.flops, kernel.num_bytes, spread.median, ceilings)
    )
