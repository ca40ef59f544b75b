"""The least time that a step can take on a machine: each stage by its operations or by its bytes, whichever is slower.

Nothing here is measured: the result is a ceiling, which no program beats and most stay well below. Stages are added
up, as they run one after the other; within a stage arithmetic and memory overlap. Several devices share every stage
evenly; communication between them is not counted.

Source: Williams, Waterman, Patterson, "Roofline" (CACM 2009).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from indexshare.config import ModelConfig
from indexshare.config.layers import INDEX_KEYS, attention_table
from indexshare.planner.flops import Work, prefill_flops, token_flops
from indexshare.planner.formats import WeightFormat, stream_row_bytes
from indexshare.planner.hardware import Machine
from indexshare.planner.memory import cache_bytes, count_parameters

STAGES = tuple(item.name for item in fields(Work))


@dataclass(frozen=True, kw_only=True)
class Reads:
    """Bytes of one step by where they lie: on the devices by stage, and what has to come from the host or from disk."""

    device: Work
    host: int = 0
    disk: int = 0


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """The least time of a piece of work.

    Attributes:
        seconds: in all; `stages`: by stage of `Work`, and `"host"` and `"disk"` for what is read from there.
        bound_by: `"arithmetic"`, `"memory"`, `"host link"` or `"disk"`, whichever takes most of the time.
        slowest: the stage that takes longest.
        flops, reads: what was counted.
    """

    seconds: float
    stages: Mapping[str, float]
    bound_by: str
    slowest: str
    flops: Work
    reads: Reads

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "seconds": self.seconds,
            "bound_by": self.bound_by,
            "slowest_stage": self.slowest,
            "stage_seconds": dict(self.stages),
            "flops": self.flops.to_dict(),
            "bytes": self.reads.device.to_dict() | {"host": self.reads.host, "disk": self.reads.disk},
        }


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Shares of the ceilings that a program reaches, from measurements of it; all one for the ceiling itself.

    Attributes:
        arithmetic: by stage, of the rate of products.
        memory: of the bandwidth.
        layer_s: seconds that a layer of a step takes beside that, whatever the step's size.
        row_s: seconds of one token in one layer for what is not counted: norms, rotations, the choice of the largest.
    """

    arithmetic: Mapping[str, float]
    memory: float = 1.0
    layer_s: float = 0.0
    row_s: float = 0.0

    def beside(self, config: ModelConfig, steps: int, tokens: int) -> float:
        """Seconds that are neither counted operations nor bytes."""
        return config.num_hidden_layers * (steps * self.layer_s + tokens * self.row_s)


CEILING = Reached(arithmetic={})


def ceiling_of(
    flops: Work, reads: Reads, machine: Machine, compute: str, reached: Reached = CEILING, beside: float = 0.0
) -> Ceiling:
    """The least time of work with so many operations, of products of type `compute`, and so many bytes."""
    stages: dict[str, float] = {}
    by: dict[str, float] = {"arithmetic": beside, "memory": 0.0}
    for stage in STAGES:
        arithmetic = getattr(flops, stage) / (machine.flops(compute) * reached.arithmetic.get(stage, 1.0))
        memory = getattr(reads.device, stage) / (machine.bandwidth * reached.memory)
        stages[stage] = max(arithmetic, memory)
        by["arithmetic" if arithmetic >= memory else "memory"] += stages[stage]
    if reads.host:
        stages["host"] = by["host link"] = reads.host / machine.host_bandwidth
    if reads.disk:
        stages["disk"] = by["disk"] = reads.disk / (machine.disk_gb_s * 1e9)
    return Ceiling(
        seconds=sum(stages.values()) + beside, stages=stages, bound_by=max(by, key=lambda name: by[name]),
        slowest=max(stages, key=lambda name: stages[name]), flops=flops, reads=reads,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where a model's bytes lie on a machine, as shares: what is on neither device nor host is on disk.

    Attributes:
        experts_device, experts_host: of the routed experts.
        latents_device, latents_host: of the cache streams other than index keys, which stay on the devices.
    """

    experts_device: float = 1.0
    experts_host: float = 0.0
    latents_device: float = 1.0
    latents_host: float = 0.0


def decode_ceiling(
    config: ModelConfig, machine: Machine, context: int, *, batch: int, weights: WeightFormat, cache: str,
    placed: Placed | None = None, full_attention: bool = False, reached: Reached = CEILING,
) -> Ceiling:  # fmt: skip
    """One token for each of `batch` sequences of `context` keys."""
    flops = token_flops(config, context, full_attention=full_attention)
    flops = Work(**{stage: getattr(flops, stage) * batch for stage in STAGES})
    reads = _reads(
        config, weights.part_bytes(config), context, tokens=batch, sequences=batch, rows=1, cache=cache,
        placed=placed or Placed(), full_attention=full_attention,
    )  # fmt: skip
    return ceiling_of(flops, reads, machine, weights.compute, reached, reached.beside(config, 1, batch))


def prefill_ceiling(
    config: ModelConfig, machine: Machine, tokens: int, *, chunk: int, weights: WeightFormat, cache: str,
    placed: Placed | None = None, full_attention: bool = False, reached: Reached = CEILING,
) -> Ceiling:  # fmt: skip
    """A prompt of `tokens` tokens, read `chunk` at a time; weights are read once for each chunk."""
    flops = prefill_flops(config, tokens, full_attention=full_attention, absorbed=not full_attention)
    parts = weights.part_bytes(config)
    totals, host, disk, chunks = dict.fromkeys(STAGES, 0), 0, 0, 0
    for start in range(0, tokens, chunk):
        rows = min(chunk, tokens - start)
        part = _reads(
            config, parts, start + rows, tokens=rows, sequences=1, rows=rows, cache=cache,
            placed=placed or Placed(), full_attention=full_attention,
        )  # fmt: skip
        for stage in STAGES:
            totals[stage] += getattr(part.device, stage)
        host, disk, chunks = host + part.host, disk + part.disk, chunks + 1
    reads = Reads(device=Work(**totals), host=host, disk=disk)
    return ceiling_of(flops, reads, machine, weights.compute, reached, reached.beside(config, chunks, tokens))


def _reads(
    config: ModelConfig, parts: Mapping[str, int], context: int, *, tokens: int, sequences: int, rows: int,
    cache: str, placed: Placed, full_attention: bool,
) -> Reads:  # fmt: skip
    """Bytes of a step: weights once, the experts that `tokens` tokens are sent to, and each sequence's cache."""
    unused = (1 - config.num_experts_per_tok / config.n_routed_experts) ** tokens  # if all are equally likely
    experts = round(parts["experts"] * (1 - unused))
    latents, keys = _cache_reads(config, context, rows, cache, full_attention=full_attention)
    device = Work(
        projections=parts["attention"], indexer=parts["indexer"], scores=sequences * keys,
        attention=round(sequences * latents * placed.latents_device),
        feed_forward=parts["dense_mlp"] + parts["router"] + parts["shared_experts"]
        + round(experts * placed.experts_device),
        head=parts["head"] or parts["embedding"],
    )  # fmt: skip
    host = experts * placed.experts_host + sequences * latents * placed.latents_host
    disk = experts * (1 - placed.experts_device - placed.experts_host)
    disk += sequences * latents * (1 - placed.latents_device - placed.latents_host)
    return Reads(device=device, host=round(host), disk=max(0, round(disk)))


def _cache_reads(config: ModelConfig, context: int, rows: int, cache: str, *, full_attention: bool) -> tuple[int, int]:
    """Bytes of latents and of index keys that `rows` tokens of one sequence read, over all layers."""
    streams = cache_bytes(config, row_bytes=lambda stream: stream_row_bytes(stream, cache)).streams
    per_token = sum(size for name, size in streams.items() if name != INDEX_KEYS)
    choosing = 0 if full_attention or not config.selects else max(0, min(rows, context - config.index_topk))
    read = min(context, choosing * config.index_topk) if choosing else context
    return read * per_token, context * streams.get(INDEX_KEYS, 0) if choosing else 0


def activation_bytes(config: ModelConfig, tokens: int, element_bytes: int = 2) -> int:
    """What a training pass over `tokens` tokens keeps for its backward pass, nothing recomputed.

    The inputs of every product and norm, the queries, what was attended, the experts' inner rows; logits are made in
    chunks and not kept.
    """
    inner = config.moe_intermediate_size
    attention = 3 * config.hidden_size + attention_table(config).kept_values(config)
    used = config.num_experts_per_tok + config.n_shared_experts
    sparse = 2 * config.hidden_size + config.num_experts_per_tok * config.hidden_size + 4 * used * inner
    dense = 2 * config.hidden_size + 4 * config.intermediate_size
    total = 0
    for layer in range(config.num_hidden_layers):
        total += attention + (sparse if config.is_moe(layer) else dense)
    return total * tokens * element_bytes


def training_bytes(config: ModelConfig, tokens: int, *, element_bytes: int = 2) -> dict[str, int]:
    """Memory of training every weight, `tokens` tokens at a time, by what it is for.

    Weights in the model's type, float32 masters beside them where that is narrower, float32 gradients, two float32
    moments for AdamW or one momentum for Muon (counted as one and a half: matrices have one, the rest two).
    """
    count = count_parameters(config).total
    return {
        "weights": count * element_bytes,
        "masters": count * 4 if element_bytes < 4 else 0,
        "gradients": count * 4,
        "optimizer": count * 6,
        "activations": activation_bytes(config, tokens, element_bytes),
    }
