"""`indexshare info`: what a model is, counted from its configuration; nothing is allocated."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from indexshare.cli.output import console, count, print_json, print_lines, print_pairs, print_table, size
from indexshare.config.layers import indexer_layers
from indexshare.config.model import ModelConfig
from indexshare.config.shipped import find_config
from indexshare.config.variant import GroupedAttention
from indexshare.planner.memory import cache_bytes, count_parameters
from indexshare.text.files import plural

_CACHE_DTYPES = {"float32": 4, "bfloat16": 2}


def info(model: str, /, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Show layers, index sharing, parameters and cache size of a model, without loading it.

    Parameters
    ----------
    model
        Name of a shipped model or of a preset (such as glm-5.2), a model directory, or a config.json.
    json
        Print one JSON object instead of tables.
    """
    config, source, _ = find_config(model)
    facts = describe(config, source)
    if json:
        print_json(facts)
    else:
        _show(model, config, facts)


def describe(config: ModelConfig, source: str) -> dict[str, Any]:
    """Everything that `info` reports, as plain values. Bytes are bytes; counts are exact."""
    parameters, plan = count_parameters(config), config.share_plan
    parts = (
        "embedding",
        "head",
        "attention",
        "indexer",
        "dense_mlp",
        "experts",
        "shared_experts",
        "router",
        "norms",
    )
    caches = {}
    for dtype, width in _CACHE_DTYPES.items():
        trunk, draft = cache_bytes(config, width), cache_bytes(config, width, draft=True)
        caches[dtype] = {
            **trunk.streams,
            "total": trunk.total,
            "total_with_draft": draft.total if config.num_nextn_predict_layers else None,
            "at_full_context": trunk.total * config.max_position_embeddings,
        }
    return {
        "model_type": config.model_type,
        "source": source,
        "dtype": config.dtype,
        "vocabulary": config.vocab_size,
        "hidden_size": config.hidden_size,
        "context": config.max_position_embeddings,
        "layers": config.num_hidden_layers,
        "pattern": plan.pattern if config.selects else None,
        "full_layers": list(indexer_layers(config)),
        "dense_layers": [n for n in range(config.num_hidden_layers) if not config.is_moe(n)],
        "attention": config.variant.attention.kind,
        "index_topk": config.index_topk if config.selects else None,
        "attention_heads": config.num_attention_heads,
        "index_heads": config.index_n_heads if config.selects else 0,
        "routed_experts": config.n_routed_experts if config.has_experts else 0,
        "experts_per_token": config.num_experts_per_tok if config.has_experts else 0,
        "shared_experts": config.n_shared_experts if config.has_experts else 0,
        "draft_layers": config.num_nextn_predict_layers,
        "parameters": {
            "total": parameters.total,
            "trunk": parameters.trunk,
            "draft": parameters.draft,
            "active": parameters.active,
            "parts": {name: getattr(parameters, name) for name in parts},
        },
        "cache_bytes_per_token": caches,
    }


def _show(model: str, config: ModelConfig, facts: dict[str, Any]) -> None:
    out, parameters = console(), facts["parameters"]
    draft = "one, with an indexer of its own" if config.num_nextn_predict_layers else "none"
    print_pairs(
        f"{model} ({facts['source']}, {config.model_type})",
        [
            ("parameters", count(parameters["total"])),
            ("  active per token", count(parameters["active"])),
            ("  draft layer", count(parameters["draft"]) if parameters["draft"] else "none"),
            ("context", plural(config.max_position_embeddings, "token")),
            ("layers", _layers(config)),
            ("draft layer", draft),
            ("attention", _attention(config)),
            ("experts", f"{config.n_routed_experts}, {config.num_experts_per_tok} per token, "
                        f"{config.n_shared_experts} shared" if config.has_experts else "none"),
            ("hidden, vocabulary", f"{config.hidden_size:,}, {config.vocab_size:,}"),
        ],
        to=out,
    )  # fmt: skip
    if config.selects:
        out.print()
        print_lines(_picture(config), to=out)
    out.print()
    rows, streams = [], list(cache_bytes(config).streams)
    for dtype, cache in facts["cache_bytes_per_token"].items():
        with_draft = cache["total_with_draft"]
        cells = [*(cache[stream] for stream in streams), cache["total"]]
        draft_cell = f"{with_draft:,}" if with_draft else "-"
        rows.append([dtype, *[f"{n:,}" for n in cells], draft_cell, size(cache["at_full_context"])])
    names = [stream.replace("_", " ") for stream in streams]
    columns = ["dtype", *names, "total", "with draft layer", "at full context"]
    print_table("Cache bytes per token", columns, rows, to=out)


def _layers(config: ModelConfig) -> str:
    layers, full = config.num_hidden_layers, len(indexer_layers(config))
    if not config.selects:
        return f"{layers}, all of which attend to every token"
    return f"{layers}: {full} Full (run an indexer), {layers - full} Shared (reuse its choice)"


def _attention(config: ModelConfig) -> str:
    heads, kind = plural(config.num_attention_heads, "head"), config.variant.attention
    if isinstance(kind, GroupedAttention):
        heads += f", {kind.kv_heads} of keys and values, {kind.head_dim} wide"
    return f"{heads}, top {plural(config.index_topk, 'token')} per query" if config.selects else heads


def _picture(config: ModelConfig, width: int = 52) -> list[str]:
    """The stack as letters, a line per `width` layers: F Full or S Shared above d dense or e experts."""
    sharing = config.share_plan.pattern
    mlps = "".join("e" if config.is_moe(layer) else "d" for layer in range(config.num_hidden_layers))
    lines = ["Layers: F runs an indexer, S shares the last one's choice; d dense MLP, e experts"]
    for first in range(0, len(sharing), width):
        last = min(first + width, len(sharing))
        draft = last == len(sharing) and config.num_nextn_predict_layers
        lines.append(f"{first:>4}  {sharing[first:last]}" + ("  F draft layer" if draft else ""))
        lines.append(f"      {mlps[first:last]}" + ("  e" if draft else ""))
    return lines
