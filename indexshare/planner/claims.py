"""What is said in public about GLM-5.2, line by line beside what follows from its configuration.

Accounts disagree; the shipped configuration decides. Every number in the second column is computed here.
"""

from __future__ import annotations

from dataclasses import dataclass

from indexshare.config import ModelConfig
from indexshare.config.layers import indexer_layers
from indexshare.config.share_plan import SharePlan
from indexshare.config.variant import GroupedAttention
from indexshare.planner.flops import Work, prefill_flops, token_flops
from indexshare.planner.formats import stream_row_bytes
from indexshare.planner.memory import cache_bytes_per_token, count_parameters

MILLION = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement: what is said, what follows, and whether the two agree."""

    said: str
    follows: str
    agrees: bool


def without_sharing(config: ModelConfig) -> ModelConfig:
    """The same model with an indexer in every layer."""
    return config.replace(indexer_types=SharePlan.all_full(config.num_hidden_layers).types)


def sharing_ratios(config: ModelConfig, context: int) -> dict[str, float]:
    """Operations for one token without sharing over those with it, under each way of counting that is in use."""
    own, every = token_flops(config, context), token_flops(without_sharing(config), context)
    expanded = [token_flops(c, context, absorbed=False).total for c in (without_sharing(config), config)]

    def ratio(leave_out: tuple[str, ...]) -> float:
        def rest(work: Work) -> int:
            return work.total - sum(getattr(work, stage) for stage in leave_out)

        return rest(every) / rest(own)

    prompt = [prefill_flops(c, context).total for c in (without_sharing(config), config)]
    return {
        "weights, scores and absorbed attention": ratio(()),
        "weights, scores and expanded attention": expanded[0] / expanded[1],
        "weights and scores": ratio(("attention",)),
        "weights without the head, and scores": ratio(("attention", "head")),
        "scores alone": ratio(("projections", "indexer", "attention", "feed_forward", "head")) if own.scores else 1.0,
        "a whole prompt of that length": prompt[0] / prompt[1],
    }


def claims(config: ModelConfig) -> list[Claim]:
    """The statements, for a configuration of GLM-5.2's kind; for another model they show how it differs."""
    counts, layers = count_parameters(config), config.num_hidden_layers
    full = len(indexer_layers(config))
    billions = f"{counts.trunk / 1e9:,.1f} B, {counts.total / 1e9:,.1f} B with the draft layer"
    return [
        Claim(said="744 B parameters", follows=billions, agrees=round(counts.trunk / 1e9) in (743, 744)),
        Claim(
            said="753 B parameters (with the draft layer)", follows=billions, agrees=round(counts.total / 1e9) == 753
        ),
        Claim(said="a 64 B model", follows=billions, agrees=round(counts.trunk / 1e9) == 64),
        Claim(
            said="about 40 B of them used for a token", follows=f"{counts.active / 1e9:,.1f} B",
            agrees=39 <= counts.active / 1e9 <= 41,
        ),
        *_layers(config),
        Claim(
            said="an indexer in a quarter of the layers",
            follows=f"{full} of {layers}, {layers / full:.2f} layers each" if full else "none",
            agrees=full > 0 and abs(layers / full - 4) < 0.5,
        ),
        *_flops(config),
        *_cache(config),
    ]  # fmt: skip


def _layers(config: ModelConfig) -> list[Claim]:
    layers, kind = config.num_hidden_layers, config.variant.attention
    dense = [layer for layer in range(layers) if not config.is_moe(layer)]
    kinds = tuple("dense" if n % 2 == 0 else "sparse" for n in range(layers))
    alternating = config.replace(model_type="glm_moe_dsa", mlp_layer_types=kinds)  # any kind of layers
    other = count_parameters(alternating).trunk / 1e9
    shown = f"dense: {', '.join(map(str, dense)) or 'none'}; experts in the other {layers - len(dense)}"
    return [
        Claim(said="the first three layers dense, experts in the rest", follows=shown, agrees=dense == [0, 1, 2]),
        Claim(
            said="dense layers and layers of experts in alternation", follows=f"{shown} (alternating: {other:,.1f} B)",
            agrees=config.mlp_layer_types == alternating.mlp_layer_types,
        ),
        Claim(
            said="8 query heads to each key/value head (grouped-query attention)",
            follows=_heads(config),
            agrees=isinstance(kind, GroupedAttention) and kind.kv_heads * 8 == config.num_attention_heads,
        ),
    ]  # fmt: skip


def _heads(config: ModelConfig) -> str:
    kind, heads = config.variant.attention, config.num_attention_heads
    if isinstance(kind, GroupedAttention):
        return f"{heads} heads of queries, {kind.kv_heads} of keys and values"
    return f"latent attention: {heads} heads read one row of {config.latent_dim} values"


def _flops(config: ModelConfig) -> list[Claim]:
    ratios = sharing_ratios(config, MILLION)
    follows = "; ".join(f"{ratio:.2f} ({name})" for name, ratio in ratios.items())
    said = "2.9 times fewer operations per token at a million tokens, thanks to sharing"
    return [Claim(said=said, follows=follows, agrees=any(round(ratio, 1) == 2.9 for ratio in ratios.values()))]


def _cache(config: ModelConfig) -> list[Claim]:
    sizes = {
        cache: cache_bytes_per_token(config, row_bytes=lambda s, c=cache: stream_row_bytes(s, c))  # type: ignore[misc]
        for cache in ("bf16", "fp8")
    }
    shown = ", ".join(f"{size * MILLION / 1e9:,.1f} GB in {cache}" for cache, size in sizes.items())
    heads = config.num_hidden_layers * config.num_attention_heads * (config.qk_head_dim + config.v_head_dim) * 2
    smaller = {cache: heads / size for cache, size in sizes.items()}
    times = ", ".join(f"{ratio:,.0f} times in {cache}" for cache, ratio in smaller.items())
    return [
        Claim(
            said="32 GB of cache at a million tokens", follows=shown,
            agrees=any(abs(size * MILLION / 1e9 - 32) < 1 for size in sizes.values()),
        ),
        Claim(
            said="a 20-fold smaller cache", follows=f"{times}, against keys and values of every head in 16 bits",
            agrees=any(abs(ratio - 20) < 1 for ratio in smaller.values()),
        ),
    ]  # fmt: skip
