"""Where the parts of a model and its cache are placed on a machine, and how much context fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from indexshare.config import ModelConfig
from indexshare.config.layers import INDEX_KEYS
from indexshare.planner.formats import WeightFormat, stream_row_bytes
from indexshare.planner.hardware import Machine
from indexshare.planner.memory import cache_bytes, step_workspace_bytes
from indexshare.planner.roofline import Placed

Fit = Literal["runs", "runs with offload", "does not fit"]
_USABLE = 0.97  # of the memory that a device reports; the rest is the program itself
_HOST_USABLE = 0.9


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes that a model needs for `batch` sequences of `context` tokens.

    Attributes:
        experts: routed experts; `weights`: everything else.
        latents: cache streams that only chosen rows are read of; `index_keys`: those that every token reads whole.
        workspace: temporaries of a step.
    """

    weights: int
    experts: int
    latents: int
    index_keys: int
    workspace: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.experts + self.latents + self.index_keys + self.workspace

    def to_dict(self) -> dict[str, int]:
        """Plain values."""
        return dict(vars(self)) | {"total": self.total}


def needs_of(
    config: ModelConfig, context: int, *, batch: int, weights: WeightFormat, cache: str, chunk: int, draft: bool
) -> Needs:
    """Count them; `draft` keeps the draft layer's weights and cache too, `chunk` tokens are read at a time."""
    parts = weights.part_bytes(config)
    experts = parts.pop("experts")
    if not draft:
        parts.pop("draft")
    streams = cache_bytes(config, row_bytes=lambda s: stream_row_bytes(s, cache), draft=draft).streams
    keys = streams.pop(INDEX_KEYS, 0)
    return Needs(
        weights=sum(parts.values()), experts=experts, latents=sum(streams.values()) * context * batch,
        index_keys=keys * context * batch, workspace=step_workspace_bytes(config, min(chunk, context)),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Placement:
    """What is where.

    Attributes:
        fit: whether it runs.
        why: one clause: what is beside the devices, or what there is no room for.
        placed: shares, for the times.
        device, host, disk: bytes on each.
    """

    fit: Fit
    why: str
    placed: Placed
    device: int
    host: int
    disk: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"fit": self.fit, "why": self.why, "device_bytes": self.device, "host_bytes": self.host,
                "disk_bytes": self.disk} | {"shares": vars(self.placed)}  # fmt: skip


def place(needs: Needs, machine: Machine) -> Placement:
    """Weights and index keys on the devices, then latents, then experts; what is left goes to the host, then to disk.

    Latents go before experts: of a million tokens' latents a step reads 2,048 rows a layer, but all of them are written
    during the prompt.
    """
    room = int(machine.memory_bytes * _USABLE)
    fixed = needs.weights + needs.index_keys + needs.workspace
    host_room = int(machine.host_memory_bytes * _HOST_USABLE)
    if fixed > room:
        why = (
            f"weights apart from experts, index keys and workspace take {fixed / 2**30:,.1f} GiB of {room / 2**30:,.1f}"
        )
        return Placement(fit="does not fit", why=why, placed=Placed(), device=0, host=0, disk=0)
    room -= fixed
    experts, rest = _split(needs.experts, min(needs.experts, max(0, room - needs.latents)), host_room)
    room -= experts[0]
    latents, _ = _split(needs.latents, room, rest)
    placed = Placed(
        experts_device=_share(experts[0], needs.experts), experts_host=_share(experts[1], needs.experts, 0.0),
        latents_device=_share(latents[0], needs.latents), latents_host=_share(latents[1], needs.latents, 0.0),
    )  # fmt: skip
    beside = [
        f"{size / 2**30:,.1f} GiB of {what} {where}"
        for what, parts in (("experts", experts), ("latents", latents))
        for size, where in zip(parts[1:], ("in host memory", "on disk"), strict=True)
        if size
    ]
    return Placement(
        fit="runs with offload" if beside else "runs", why=", ".join(beside) or "everything in memory", placed=placed,
        device=fixed + experts[0] + latents[0], host=experts[1] + latents[1], disk=experts[2] + latents[2],
    )  # fmt: skip


def _split(size: int, room: int, host_room: int) -> tuple[tuple[int, int, int], int]:
    """Bytes on the devices, the host and disk, and the room that is left on the host."""
    device = min(size, max(0, room))
    host = min(size - device, max(0, host_room))
    return (device, host, size - device - host), host_room - host


def _share(part: int, whole: int, otherwise: float = 1.0) -> float:
    return part / whole if whole else otherwise


def largest_context(
    config: ModelConfig, machine: Machine, *, batch: int, weights: WeightFormat, cache: str, chunk: int, draft: bool
) -> int:
    """Most tokens of context with which everything stays in the devices' memory; 0 if not even the weights fit.

    Not more than the model was made for.
    """

    def fits(context: int) -> bool:
        needs = needs_of(config, context, batch=batch, weights=weights, cache=cache, chunk=chunk, draft=draft)
        return needs.total <= int(machine.memory_bytes * _USABLE)

    low, high = 0, config.max_position_embeddings
    if fits(high):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
