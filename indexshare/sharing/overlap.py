"""How much the layers' selections agree, and how much of a layer's attention each selection keeps.

Every window goes through the model once; nothing of size queries x keys outlives its layer. Overlap and attention are
taken at some queries of each window, evenly spread, and kept apart by where in the window a query stands.
Shape letters: B ranges of positions, N layers, J Full layers, S queries, k chosen, H index heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indexshare.config.share_plan import SharePlan
from indexshare.model.glm import GlmMoeDsa
from indexshare.sharing.health import NAMES, Health, as_health, health_sums
from indexshare.sharing.sampled import Seen, look_at, sample_queries
from indexshare.sharing.state_file import StateFile
from indexshare.sharing.windows import check_window

RANGES = 8  # of positions
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class OverlapReport:
    """Means over queries, for one length of window; index 0 of the first dimension is all of them, the others ranges.

    Attributes:
        length: tokens of a window; `windows` how many; `queries` looked at, of `possible` that have a selection.
        topk: tokens of a selection.
        plan: of the model.
        edges: positions that bound the ranges, `B + 1` of them.
        counts: queries of each.
        overlap: `[B + 1][J][J]`, common tokens of two Full layers' selections over k.
        recall: `[B + 1][N][J]`, part of a layer's attention that a selection holds; None where that is made above.
        best: `[B + 1][N]`, part that the k tokens with most attention hold.
        recent: `[B + 1][N]`, part that the k most recent tokens hold.
        recent_overlap: `[B + 1][J]`, part of a selection that is among the k most recent tokens.
        random: `[B + 1]`, what k tokens drawn at random would hold and overlap, on average.
        health: of each Full layer's indexer.
    """

    length: int
    windows: int
    queries: int
    possible: int
    topk: int
    plan: SharePlan
    edges: tuple[int, ...]
    counts: tuple[int, ...]
    overlap: list[list[list[float]]]
    recall: list[list[list[float | None]]]
    best: list[list[float]]
    recent: list[list[float]]
    recent_overlap: list[list[float]]
    random: list[float]
    health: tuple[Health, ...]

    def own(self, layer: int) -> float | None:
        """Part of a layer's attention that its own selection holds; None for Shared layers, which have none."""
        full = self.plan.full_layers
        return self.recall[0][layer][full.index(layer)] if layer in full else None

    def inherited(self, layer: int) -> float | None:
        """The same for the selection of the Full layer before it; None for the first layer."""
        before = [number for number, full in enumerate(self.plan.full_layers) if full < layer]
        return self.recall[0][layer][before[-1]] if before else None

    def adjacent(self) -> float | None:
        """Mean overlap of Full layers with the one before; None where there is only one."""
        pairs = [self.overlap[0][n][n - 1] for n in range(1, len(self.plan.full_layers))]
        return sum(pairs) / len(pairs) if pairs else None


class Meter:
    """Sums over the queries of the windows so far.

    Args:
        plan: of the model; layers: of the trunk; heads: of an indexer; topk: tokens of a selection.
        length: of a window.
    """

    def __init__(self, plan: SharePlan, *, heads: int, topk: int, length: int) -> None:
        layers, full = plan.num_layers, len(plan.full_layers)
        self._plan, self._topk, self._length = plan, topk, length
        shapes = {
            "count": (RANGES,), "overlap": (RANGES, full, full), "recall": (RANGES, layers, full),
            "best": (RANGES, layers), "recent": (RANGES, layers), "recent_overlap": (RANGES, full),
            "random": (RANGES,), "health": (full, len(NAMES)), "heads": (full, 2, heads),
        }  # fmt: skip
        self.sums = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
        self._chosen: dict[int, Tensor] = {}  # of this window, by Full layer

    @property
    def edges(self) -> tuple[int, ...]:
        """Positions that bound the ranges."""
        return tuple(np.linspace(self._topk, self._length, RANGES + 1).round().astype(int).tolist())

    def _by_range(self, values: Tensor, queries: Tensor) -> Tensor:
        """Sums of one value per query, `[B]`."""
        edges = torch.tensor(self.edges[1:-1], device=queries.device)
        ranges = torch.bucketize(queries, edges, right=True)
        sums = torch.zeros(RANGES, dtype=torch.float64, device=values.device)
        return sums.index_add_(0, ranges, values.double()).cpu()

    def look(self, seen: Seen) -> None:
        """Add one layer."""
        full, sums, at = self._plan.full_layers, self.sums, seen.queries
        if seen.layer == 0:
            self._chosen.clear()
            sums["count"] += self._by_range(torch.ones_like(at), at)
            sums["random"] += self._by_range(self._topk / (at + 1), at)
        if seen.index is not None:
            self._add_choice(seen, full.index(seen.layer))
        attention = seen.attention
        for layer, chosen in self._chosen.items():
            held = attention.gather(1, chosen).sum(-1)
            sums["recall"][:, seen.layer, full.index(layer)] += self._by_range(held, at)
        best = attention.topk(self._topk, dim=-1, sorted=False).values.sum(-1)
        sums["best"][:, seen.layer] += self._by_range(best, at)
        recent = at[:, None] - torch.arange(self._topk, device=at.device)
        sums["recent"][:, seen.layer] += self._by_range(attention.gather(1, recent).sum(-1), at)

    def _add_choice(self, seen: Seen, number: int) -> None:
        """Add what a Full layer chose."""
        at, sums = seen.queries, self.sums
        self._chosen[seen.layer] = seen.chosen
        member = torch.zeros(seen.attention.shape, dtype=torch.bool, device=at.device)
        member.scatter_(1, seen.chosen, torch.ones_like(seen.chosen, dtype=torch.bool))
        for other, chosen in enumerate(self._chosen.values()):
            common = self._by_range(member.gather(1, chosen).sum(-1) / self._topk, at)
            sums["overlap"][:, number, other] += common
            if other != number:
                sums["overlap"][:, other, number] += common
        recent = (seen.chosen > at[:, None] - self._topk).sum(-1) / self._topk
        sums["recent_overlap"][:, number] += self._by_range(recent, at)
        figures, heads = health_sums(seen, self._topk)
        sums["health"][number] += figures
        sums["heads"][number] += heads

    def state(self) -> dict[str, Any]:
        """The sums as plain values."""
        return {name: tensor.tolist() for name, tensor in self.sums.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.sums = {name: torch.tensor(values, dtype=torch.float64) for name, values in state.items()}

    def report(self, windows: int) -> OverlapReport:
        """The means."""
        sums, plan = self.sums, self._plan
        queries = int(sums["count"].sum())
        means = {name: _means(sums[name], sums["count"]) for name in sums if name not in ("count", "health", "heads")}
        pairs = zip(sums["health"], sums["heads"], strict=True)
        return OverlapReport(
            length=self._length,
            windows=windows,
            queries=queries,
            possible=windows * (self._length - self._topk),
            topk=self._topk,
            plan=plan,
            edges=self.edges,
            counts=(queries, *map(int, sums["count"].tolist())),
            overlap=means["overlap"].tolist(),
            recall=[_only_earlier(matrix, plan) for matrix in means["recall"].tolist()],
            best=means["best"].tolist(),
            recent=means["recent"].tolist(),
            recent_overlap=means["recent_overlap"].tolist(),
            random=means["random"].tolist(),
            health=tuple(as_health(figures, heads, queries) for figures, heads in pairs),
        )


def _means(sums: Tensor, count: Tensor) -> Tensor:
    """Over all queries, then for each range: `[B + 1, ...]`; zero for a range without queries."""
    shape = (-1, *[1] * (sums.dim() - 1))
    both = torch.cat((sums.sum(0, keepdim=True), sums))
    return both / torch.cat((count.sum()[None], count)).clamp_min(1).view(shape)


def _only_earlier(matrix: list[list[float]], plan: SharePlan) -> list[list[float | None]]:
    """None where a selection is made above the layer."""
    return [
        [value if full <= layer else None for value, full in zip(row, plan.full_layers, strict=True)]
        for layer, row in enumerate(matrix)
    ]


def measure_overlap(
    model: GlmMoeDsa, windows: Tensor, *, queries: int = 128, seed: int = 0, state: StateFile | None = None,
    progress: Progress | None = None,
) -> OverlapReport:  # fmt: skip
    """Run windows through a model and compare what its layers choose.

    Args:
        model: in evaluation mode.
        windows: int64 `[count, length]`.
        queries: looked at in each window; as many as there are gives every one.
        seed: of their places.
        state: keeps what was measured after each window, and goes on from there.
        progress: told (tokens done, tokens in all).

    Raises:
        ValueError: windows that the model does not read, or in which nothing is selected.
    """
    config, (count, length) = model.config, windows.shape
    check_window(config, length)
    if queries < 1:
        raise ValueError(f"--queries is {queries}; expected 1 or more in each window")
    meter = Meter(model.plan, heads=config.index_n_heads, topk=config.index_topk, length=length)
    state = state or StateFile(None, {})
    kept = state.found.get(str(length))
    if kept is not None:
        meter.restore(kept["sums"])
    shifts = torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist()
    for number in range(0 if kept is None else kept["windows"], count):
        if progress is not None:
            progress(number * length, count * length)
        look_at(model, windows[number], sample_queries(length, config.index_topk, queries, shifts[number]), meter.look)
        state.save(state.found | {str(length): {"windows": number + 1, "sums": meter.state()}})
    if progress is not None:
        progress(count * length, count * length)
    return meter.report(count)
