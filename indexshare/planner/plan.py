"""Everything about running a model on a machine before anything is loaded: sizes, operations, room, times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from indexshare.config import ModelConfig
from indexshare.config.layers import indexer_layers
from indexshare.planner.claims import sharing_ratios, without_sharing
from indexshare.planner.flops import prefill_flops, token_flops
from indexshare.planner.formats import CACHE_FORMATS, FORMATS, WeightFormat, stream_row_bytes
from indexshare.planner.hardware import Machine
from indexshare.planner.memory import cache_bytes, count_parameters
from indexshare.planner.placement import Needs, Placement, largest_context, needs_of, place
from indexshare.planner.reached import reached_by
from indexshare.planner.roofline import CEILING, Ceiling, Reached, decode_ceiling, prefill_ceiling, training_bytes

COUNTING = "products of weights, index scores and absorbed attention, the head included; two operations each"
TRAINING_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is planned for.

    Attributes:
        context: tokens of each sequence.
        batch: sequences at once.
        weights: how weights are stored.
        cache: how cache rows are stored, a name of `formats.CACHE_FORMATS`.
        chunk: tokens of a prompt read at a time.
        draft: keep the draft layer and its cache in memory.
    """

    context: int
    batch: int
    weights: WeightFormat
    cache: str
    chunk: int = 2048
    draft: bool = False

    def check(self, config: ModelConfig) -> None:
        """Refuse (ValueError) sizes that no plan can be made for."""
        if self.context < 1 or self.batch < 1 or self.chunk < 1:
            raise ValueError(
                f"--context is {self.context}, --batch {self.batch} and --chunk {self.chunk}; expected at least 1 each"
            )
        if self.context > config.max_position_embeddings:
            raise ValueError(
                f"--context is {self.context:,}; this model was made for {config.max_position_embeddings:,} tokens"
            )


@dataclass(frozen=True, kw_only=True)
class MachinePlan:
    """A model on one machine.

    Attributes:
        placement: what is where.
        decode, prefill: the ceilings, None where it does not fit.
        likely_decode, likely_prefill: with the shares of them that this program reaches, where they have been measured.
        largest: most tokens of context with everything in the devices' memory.
    """

    machine: Machine
    needs: Needs
    placement: Placement
    decode: Ceiling | None
    prefill: Ceiling | None
    largest: int
    likely_decode: Ceiling | None = None
    likely_prefill: Ceiling | None = None

    def to_dict(self, batch: int) -> dict[str, Any]:
        """Plain values."""
        facts: dict[str, Any] = {
            "machine": self.machine.name,
            "label": self.machine.label,
            "fits": self.placement.fit != "does not fit",
            "bound_by": None if self.decode is None else self.decode.bound_by,
            "placement": self.placement.to_dict(),
            "needs_bytes": self.needs.to_dict(),
            "largest_context_in_memory": self.largest,
        }
        for name in ("decode", "prefill", "likely_decode", "likely_prefill"):
            ceiling: Ceiling | None = getattr(self, name)
            facts[name] = None if ceiling is None else ceiling.to_dict()
        if self.decode is not None:
            facts["tokens_per_second_at_most"] = batch / self.decode.seconds
        return facts


def plan_machine(config: ModelConfig, machine: Machine, request: Request) -> MachinePlan:
    """Place the model, bound its times, and say what to expect of this program where that is known."""
    sizes = {"batch": request.batch, "weights": request.weights, "cache": request.cache}
    needs = needs_of(config, request.context, chunk=request.chunk, draft=request.draft, **sizes)  # type: ignore[arg-type]
    placement = place(needs, machine)
    largest = largest_context(config, machine, chunk=request.chunk, draft=request.draft, **sizes)  # type: ignore[arg-type]
    if placement.fit == "does not fit":
        return MachinePlan(
            machine=machine, needs=needs, placement=placement, decode=None, prefill=None, largest=largest
        )  # fmt: skip

    common = {"weights": request.weights, "cache": request.cache, "placed": placement.placed}

    def decode(reached: Reached) -> Ceiling:
        return decode_ceiling(config, machine, request.context, batch=request.batch, reached=reached, **common)  # type: ignore[arg-type]

    def prefill(reached: Reached) -> Ceiling:
        return prefill_ceiling(config, machine, request.context, chunk=request.chunk, reached=reached, **common)  # type: ignore[arg-type]

    program = reached_by(machine.level, request.weights.compute)
    return MachinePlan(
        machine=machine, needs=needs, placement=placement, largest=largest, decode=decode(CEILING),
        prefill=prefill(CEILING), likely_decode=decode(program.decode) if program else None,
        likely_prefill=prefill(program.prefill) if program else None,
    )  # fmt: skip


def facts_of(config: ModelConfig, request: Request) -> dict[str, Any]:
    """What does not depend on a machine; bytes are bytes, counts are exact."""
    counts, plain = count_parameters(config), without_sharing(config)
    shared, unshared = token_flops(config, request.context), token_flops(plain, request.context)
    per_token = {
        name: cache_bytes(config, row_bytes=lambda s, n=name: stream_row_bytes(s, n)).total  # type: ignore[misc]
        for name in CACHE_FORMATS
    }
    keys = {
        "with_sharing": config.index_head_dim * len(indexer_layers(config)),
        "without": config.index_head_dim * config.num_hidden_layers * config.selects,
    }
    return {
        "context": request.context,
        "batch": request.batch,
        "weights": request.weights.name,
        "cache": request.cache,
        "parameters_total": counts.total,
        "parameters_active": counts.active,
        "parameters": {name: value for name, value in vars(counts).items() if name != "active"},
        "weight_bytes": request.weights.part_bytes(config) | {"total": request.weights.total_bytes(config)},
        "flops_per_token": {
            "shared": shared.total,
            "unshared": unshared.total,
            "ratio": unshared.total / shared.total,
            "counting": COUNTING,
            "stages": shared.to_dict(),
            "stages_unshared": unshared.to_dict(),
            "ratios": sharing_ratios(config, request.context),
        },
        "flops_of_prompt": {
            "shared": prefill_flops(config, request.context).to_dict(),
            "unshared": prefill_flops(plain, request.context).to_dict(),
        },
        "cache_bytes_per_token": per_token,
        "cache_bytes": {name: size * request.context * request.batch for name, size in per_token.items()},
        "index_key_values_per_token": keys,
        "training_bytes": training_bytes(config, min(TRAINING_TOKENS, config.max_position_embeddings)),
    }


def matrix(
    config: ModelConfig, machines: Sequence[Machine], contexts: Sequence[int], request: Request
) -> list[list[Placement]]:
    """Whether it runs, for each machine (rows) and context (columns)."""
    rows = []
    for machine in machines:
        rows.append([
            place(
                needs_of(
                    config, context, batch=request.batch, weights=request.weights, cache=request.cache,
                    chunk=request.chunk, draft=request.draft,
                ),
                machine,
            )
            for context in contexts
        ])  # fmt: skip
    return rows


@dataclass(frozen=True, kw_only=True)
class Change:
    """One thing changed: its name, and the plan with it."""

    name: str
    plan: MachinePlan


def changes(config: ModelConfig, machine: Machine, request: Request) -> list[Change]:
    """The plan as asked, without index sharing, and with every other way to store the cache and the weights."""
    found = [Change(name="as asked", plan=plan_machine(config, machine, request))]
    if config.share_plan.shared_layers:
        found.append(Change(name="no index sharing", plan=plan_machine(without_sharing(config), machine, request)))
    for cache in ("bf16", "fp8", "int8"):
        if cache != request.cache:
            other = replace(request, cache=cache)
            found.append(Change(name=f"cache in {cache}", plan=plan_machine(config, machine, other)))
    for name in ("bf16", "fp8", "int8", "int4"):
        if name != request.weights.name:
            other = replace(request, weights=FORMATS[name])
            found.append(Change(name=f"weights in {name}", plan=plan_machine(config, machine, other)))
    return found
