"""`indexshare plan`: what a model will cost on a machine, counted from its configuration; nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from indexshare.cli.output import console, count, note, print_json, print_pairs, print_table, size
from indexshare.config.shipped import find_config
from indexshare.planner.claims import claims
from indexshare.planner.formats import weight_format
from indexshare.planner.hardware import USUAL, Machine, find_machines
from indexshare.planner.plan import MachinePlan, Request, changes, facts_of, matrix, plan_machine
from indexshare.planner.published import published_speeds

if TYPE_CHECKING:
    from rich.console import Console

    from indexshare.config import ModelConfig

HERE = "here"
_CONTEXTS = (8 << 10, 32 << 10, 128 << 10, 1 << 20)
_STATES = {"runs": "runs", "runs with offload": "offload", "does not fit": "-"}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Views:
    """What to show besides the plan.

    Parameters
    ----------
    matrix
        A table of usual machines against context lengths: runs, runs with offload, does not fit.
    changes
        What index sharing, 8-bit caches and other weights change on the first machine.
    explain
        Public statements about GLM-5.2 beside what follows from the configuration.
    published
        Published speeds beside the ceilings for their machines.
    plot
        Draw operations per token and cache by context into this file (png, svg or pdf); needs matplotlib.
    """

    matrix: Annotated[bool, Parameter(negative="")] = False
    changes: Annotated[bool, Parameter(negative="")] = False
    explain: Annotated[bool, Parameter(negative="")] = False
    published: Annotated[bool, Parameter(negative="")] = False
    plot: Path | None = None


def plan(
    model: str,
    /,
    *,
    context: str | None = None,
    batch: int = 1,
    hardware: tuple[str, ...] = (HERE,),
    weights: str = "bf16",
    cache_dtype: str = "bf16",
    chunk: int = 2048,
    draft: Annotated[bool, Parameter(negative="")] = False,
    views: Views | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Show what a model needs and how fast it can be at best, without loading it.

    Parameters
    ----------
    model
        Name of a shipped model or of a preset (such as glm-5.2), a model directory, or a config.json.
    context
        Tokens of each sequence, such as 8192, 128K or 1M; by default what the model was made for.
    batch
        Sequences at once.
    hardware
        Machines: names such as rtx-4090x2 or h200x8, files of machines of your own, or here (measured in seconds).
    weights
        How weights are stored: float32, bf16, fp8, int8, int4, nvfp4, q4_k_m or iq2_m.
    cache_dtype
        How the cache is stored: float32, bf16, fp8 or int8.
    chunk
        Tokens of a prompt that are read at a time.
    draft
        Keep the draft layer and its cache in memory too.
    json
        Print one JSON object instead of tables.
    """
    views, (config, source, _) = views or Views(), find_config(model)
    if views.plot is not None:
        from indexshare.cli.plan_plot import check

        check(views.plot)
    request = Request(
        context=config.max_position_embeddings if context is None else parse_tokens(context), batch=batch,
        weights=weight_format(weights), cache=cache_dtype, chunk=chunk, draft=draft,
    )  # fmt: skip
    request.check(config)
    facts = facts_of(config, request)
    machines = [machine for name in hardware for machine in _machines(name)]
    plans = [plan_machine(config, machine, request) for machine in machines]
    if json:
        print_json({"model": model, "source": source} | facts | _report(config, request, plans, views))
    else:
        _show(model, config, request, facts, plans, views)
    if views.plot is not None:
        from indexshare.cli.plan_plot import draw

        draw(model, config, views.plot)
        note(f"drawn into {views.plot}")


def parse_tokens(text: str) -> int:
    """A number of tokens; K and M stand for 1,024 and its square. ValueError for anything else."""
    units = {"k": 1 << 10, "m": 1 << 20}
    number, unit = (text[:-1], units[text[-1].lower()]) if text[-1:].lower() in units else (text, 1)
    if not (number.isascii() and number.isdigit()):
        raise ValueError(f"--context is {text!r}; expected a number of tokens such as 8192, 128K or 1M")
    return int(number) * unit


def _machines(name: str) -> list[Machine]:
    """Machines by name; `here` is measured."""
    if name != HERE:
        return find_machines(name)
    from indexshare.measure.here import this_machine

    note("measuring this machine: products of matrices and memory, a few seconds")
    return [this_machine()]


def _report(config: ModelConfig, request: Request, plans: Sequence[MachinePlan], views: Views) -> dict[str, Any]:
    """The parts of the JSON object that depend on machines and views."""
    first = plans[0].to_dict(request.batch)
    report: dict[str, Any] = {"fits": first["fits"], "bound_by": first["bound_by"]}
    report["machines"] = [plan.to_dict(request.batch) for plan in plans]
    if views.changes:
        found = changes(config, plans[0].machine, request)
        report["changes"] = [{"name": change.name} | change.plan.to_dict(request.batch) for change in found]
    if views.matrix:
        rows = _matrix(config, request)
        report["matrix"] = [
            {"machine": machine.name, "contexts": {str(n): p.to_dict() for n, p in zip(contexts, row, strict=True)}}
            for machine, contexts, row in rows
        ]
    if views.explain:
        report["claims"] = [vars(claim) for claim in claims(config)]
    if views.published:
        report["published"] = [speed.compare() for speed in published_speeds()]
    return report


def _matrix(config: ModelConfig, request: Request) -> list[tuple[Machine, list[int], list[Any]]]:
    machines = [machine for name in USUAL for machine in find_machines(name)]
    contexts = sorted({min(n, config.max_position_embeddings) for n in _CONTEXTS})
    rows = matrix(config, machines, contexts, request)
    return [(machine, contexts, row) for machine, row in zip(machines, rows, strict=True)]


def _show(
    model: str, config: ModelConfig, request: Request, facts: dict[str, Any], plans: Sequence[MachinePlan], views: Views
) -> None:
    out = console()
    flops, cache = facts["flops_per_token"], facts["cache_bytes_per_token"]
    print_pairs(
        f"{model}: {request.context:,} tokens of context, batch {request.batch}, weights {request.weights.name}, "
        f"cache {request.cache}",
        [
            ("parameters", count(facts["parameters_total"])),
            ("  active per token", count(facts["parameters_active"])),
            ("weights", size(facts["weight_bytes"]["total"])),
            ("cache per token", f"{cache[request.cache]:,} bytes, {size(facts['cache_bytes'][request.cache])} in all"),
            ("operations per token", f"{flops['shared'] / 1e9:,.3g} G" + (
                f"; with an indexer in every layer {flops['unshared'] / 1e9:,.3g} G, {flops['ratio']:.2f} times as many"
                if config.selects else ""
            )),
            ("  counted", flops["counting"]),
            ("training, 8,192 tokens at a time", size(sum(facts["training_bytes"].values()))),
        ],
        to=out,
    )  # fmt: skip
    out.print()
    _stages(facts, out)
    out.print()
    _plans(request, plans, out)
    if views.changes:
        out.print()
        _changes(config, plans[0].machine, request, out)
    if views.matrix:
        out.print()
        _show_matrix(config, request, out)
    if views.explain:
        out.print()
        rows = [[claim.said, "yes" if claim.agrees else "no", claim.follows] for claim in claims(config)]
        print_table("Said in public, and what follows from the configuration", ["said", "so", "follows"], rows, to=out)
    if views.published:
        out.print()
        _published(out)


def _stages(facts: dict[str, Any], out: Console) -> None:
    own, every = facts["flops_per_token"]["stages"], facts["flops_per_token"]["stages_unshared"]
    prompt = facts["flops_of_prompt"]["shared"]
    rows = [
        [name, f"{own[name] / 1e9:,.3g}", f"{every[name] / 1e9:,.3g}", f"{prompt[name] / 1e12:,.3g}"] for name in own
    ]
    columns = ["stage", "G per token", "without sharing", "T in the prompt"]
    print_table("Operations, 10^9 for the last token and 10^12 for the whole prompt", columns, rows, to=out)


def _plans(request: Request, plans: Sequence[MachinePlan], out: Console) -> None:
    columns = [
        "it", "tokens/s at most", "  to expect", "  bound by", "prompt at least", "  to expect", "context in memory",
        "where",
    ]  # fmt: skip
    rows = [_row(plan, request.batch) for plan in plans]
    title = "Ceilings: no program is faster, most are slower"
    if len(plans) == 1:  # a table of one row is too wide for many terminals
        print_pairs(f"{title}; {plans[0].machine.label}", list(zip(columns, rows[0], strict=True)), to=out)
    else:
        labelled = [[plan.machine.label, *row] for plan, row in zip(plans, rows, strict=True)]
        print_table(title, ["machine", "", *(name.strip() for name in columns[1:])], labelled, to=out)
    if any(plan.likely_decode for plan in plans):
        out.print(
            "to expect: with the shares of the ceilings that indexshare's CPU kernels reach (planner/reached.toml)"
        )


def _row(plan: MachinePlan, batch: int) -> list[str]:
    cells, bound = ["-", "-", "-", "-"], "-"
    if plan.decode is not None and plan.prefill is not None:
        rates = [ceiling and f"{batch / ceiling.seconds:,.4g}" for ceiling in (plan.decode, plan.likely_decode)]
        times = [ceiling and duration(ceiling.seconds) for ceiling in (plan.prefill, plan.likely_prefill)]
        cells, bound = [cell or "-" for cell in rates + times], plan.decode.bound_by
    return [plan.placement.fit, *cells[:2], bound, *cells[2:], f"{plan.largest:,}", plan.placement.why]


def _changes(config: ModelConfig, machine: Machine, request: Request, out: Console) -> None:
    rows = []
    for change in changes(config, machine, request):
        plan, times = change.plan, ["-", "-"]
        if plan.decode is not None and plan.prefill is not None:
            times = [f"{request.batch / plan.decode.seconds:,.4g}", duration(plan.prefill.seconds)]
        rows.append([change.name, size(plan.needs.total), *times, plan.placement.fit])
    columns = ["", "needs", "tokens/s at most", "prompt at least", "on this machine"]
    print_table(f"What changes, on {machine.label}", columns, rows, to=out)


def _show_matrix(config: ModelConfig, request: Request, out: Console) -> None:
    found = _matrix(config, request)
    contexts = found[0][1]
    rows = [[machine.label, *[_STATES[place.fit] for place in row], row[-1].why] for machine, _, row in found]
    columns = ["machine", *[f"{n:,}" for n in contexts], "at the longest"]
    print_table(
        "Machines against context: runs, offload (host memory or disk), - (does not fit)", columns, rows, to=out
    )


def _published(out: Console) -> None:
    rows = []
    for speed in published_speeds():
        facts = speed.compare()
        rows.append([
            f"{facts['model']}, {facts['weights']}", facts["machine"], facts["what"], f"{facts['context']:,}",
            str(facts["batch"]), duration(facts["published_seconds"]), duration(facts["least_seconds"]),
            f"{facts['ratio']:.1f}", facts["source"],
        ])  # fmt: skip
    columns = ["model", "machine", "", "context", "batch", "published", "at least", "ratio", "source"]
    print_table("Published times beside the least that the shapes allow", columns, rows, to=out)


def duration(seconds: float) -> str:
    """Seconds in a unit that fits: `1.2 ms`, `34 s`, `2.5 h`."""
    for limit, unit, factor in ((1, "ms", 1e3), (120, "s", 1), (7200, "min", 1 / 60)):
        if seconds < limit:
            return f"{seconds * factor:,.3g} {unit}"
    return f"{seconds / 3600:,.3g} h"
