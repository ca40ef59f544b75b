"""A model's forward pass as its formulas read, under any conventions: float32, one sequence, nothing cached.

Beside `model/glm.py` this is the second definition of the model; it shares no code with it, so that either checks the
other. Sources: DeepSeek-V2 (arXiv 2405.04434) section 2.1 for the attention, DeepSeek-V3.2 (arXiv 2512.02556) section
2.1 for the indexer, DeepSeek-V3 (arXiv 2412.19437) sections 2.1.2 and 2.2 for experts and the draft layer.

Shape letters: S tokens, H hidden, A heads, E and P a head's plain and rotary width, C latent, I index heads, D their
width, X experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from indexshare.config.model import ModelConfig
from indexshare.verify.conventions import RIGHT, Conventions
from indexshare.verify.observation import LayerStates

_LATENT_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a pass computed.

    Attributes:
        logits: float32 `[S, V]`.
        layers: each layer's states.
        draft_logits: float32 `[S - 1, V]` of the draft layer's first step, or None; row i predicts token i + 2.
        margin: the smallest gap between what was chosen last and what was left out first, over all choices of tokens
            (relative to the query's largest score) and experts; where it is of the size of rounding, another program
            may rightly choose otherwise.
    """

    logits: Tensor
    layers: list[LayerStates]
    draft_logits: Tensor | None
    margin: float


class PlainForward:
    """Computes a model from its weights.

    Args:
        config: sizes and plan.
        weights: `GlmMoeDsa.state_dict()`; converted to float32 where it is not.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
        self.config, self.how = config, RIGHT
        self.weights = {name: tensor.detach().float() for name, tensor in weights.items()}
        self._margin = 1.0

    @torch.no_grad()
    def __call__(self, token_ids: Tensor, conventions: Conventions = RIGHT, *, draft: bool = False) -> Trace:
        """Run int64 `[S]` tokens; `draft` also runs the draft layer once, behind the trunk."""
        self.how, self._margin = conventions, 1.0
        rope = self._rope(len(token_ids))
        x = self.weights["embed_tokens.weight"][token_ids]
        layers = list[LayerStates]()
        for layer in range(self.config.num_hidden_layers):
            taken = None if self._is_full(layer) else layers[-1].chosen
            layers.append(self._layer(f"layers.{layer}.", layer, x, rope, taken))
            x = layers[-1].after
        normed = self._norm(x, "norm.weight")
        head = self._head()
        drafted = None
        if draft:
            state = normed if conventions.draft_hidden == "after norm" else x
            drafted = self._draft(token_ids, state, rope, head)
        return Trace(logits=normed @ head.T, layers=layers, draft_logits=drafted, margin=self._margin)

    @torch.no_grad()
    def layer(self, layer: int, before: Tensor, chosen: Tensor) -> LayerStates:
        """One layer of the trunk on states `[S, H]`, with the right conventions and the choice that is handed in."""
        self.how = RIGHT
        return self._layer(f"layers.{layer}.", layer, before, self._rope(len(before)), chosen)

    @torch.no_grad()
    def feed_forward(self, layer: int, between: Tensor) -> Tensor:
        """What the second half of a layer makes of states `[S, H]`, with the right conventions."""
        self.how = RIGHT
        return self._feed_forward(f"layers.{layer}.", layer, between)

    @torch.no_grad()
    def index_scores(self, layer: int, before: Tensor) -> Tensor:
        """Scores `[S, S]` that a Full layer's indexer gives, with the right conventions; those of later keys too."""
        self.how, prefix = RIGHT, f"layers.{layer}."
        x = self._norm(before, prefix + "input_layernorm.weight")
        prefix += "self_attn."
        return self._index_scores(prefix + "indexer.", x, self._latent_query(prefix, x), self._rope(len(x)))

    def _head(self) -> Tensor:
        return self.weights.get("lm_head.weight", self.weights["embed_tokens.weight"])

    def _draft(self, token_ids: Tensor, state: Tensor, rope: tuple[Tensor, Tensor], head: Tensor) -> Tensor:
        """Logits `[S - 1, V]` of the first draft step: slot i holds (embedding of token i + 1, state of token i)."""
        embedded = self._norm(self.weights["embed_tokens.weight"][token_ids[1:]], "mtp.enorm.weight")
        carried = self._norm(state[:-1], "mtp.hnorm.weight")
        halves = (embedded, carried) if self.how.draft_halves == "embedding first" else (carried, embedded)
        x = torch.cat(halves, -1) @ self.weights["mtp.eh_proj.weight"].T
        layer = self.config.num_hidden_layers
        x = self._layer("mtp.layer.", layer, x, (rope[0][:-1], rope[1][:-1]), None).after
        return (self._norm(x, "mtp.shared_head_norm.weight") if self.how.draft_norm else x) @ head.T

    def _is_full(self, layer: int) -> bool:
        """Whether a layer makes a choice of its own under these conventions; the first one always does."""
        plan = self.config.share_plan
        shift = {"plan": 0, "early": 1, "late": -1, "ignored": 0}[self.how.sharing]
        if self.how.sharing == "ignored" or layer == 0:
            return True
        place = layer + shift
        return 0 <= place < plan.num_layers and plan.is_full(place)

    def _rope(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[S, P / 2]` of positions 0 to S - 1."""
        parameters = self.config.rope_parameters
        if self.how.rope_theta is not None:
            parameters = type(parameters)(**{**vars(parameters), "rope_theta": self.how.rope_theta})
        frequencies = torch.tensor(parameters.inverse_frequencies(self.config.qk_rope_head_dim), dtype=torch.float32)
        angles = torch.arange(tokens).float()[:, None] * frequencies
        return angles.cos() * parameters.table_scale, angles.sin() * parameters.table_scale

    def _norm(self, x: Tensor, weight: str, eps: float | None = None) -> Tensor:
        eps = (self.how.norm_eps or self.config.rms_norm_eps) if eps is None else eps
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * self.weights[weight]

    def _layer(
        self, prefix: str, layer: int, x: Tensor, rope: tuple[Tensor, Tensor], selection: Tensor | None
    ) -> LayerStates:
        """One decoder layer; makes a choice where none is handed in."""
        attended, selection = self._attention(
            prefix + "self_attn.", layer, self._norm(x, prefix + "input_layernorm.weight"), rope, selection
        )
        between = x + attended
        after = self._feed_forward(prefix, layer, between)
        return LayerStates(before=x, between=between, after=after, chosen=selection)

    def _feed_forward(self, prefix: str, layer: int, between: Tensor) -> Tensor:
        normed = self._norm(between, prefix + "post_attention_layernorm.weight")
        part = self._experts if self.config.is_moe(layer) else self._swiglu
        return between + part(prefix + "mlp.", normed)

    def _attention(
        self, prefix: str, layer: int, x: Tensor, rope: tuple[Tensor, Tensor], selection: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        config, how = self.config, self.how
        eps = _LATENT_EPS if how.latent_eps is None else how.latent_eps
        rank, heads, interleaved = config.kv_lora_rank, config.num_attention_heads, how.attention_rope == "interleaved"
        latent_query = self._latent_query(prefix, x)
        query = self._linear(latent_query, prefix + "q_b_proj").unflatten(-1, (heads, -1))
        plain, turned = query.split((config.qk_nope_head_dim, config.qk_rope_head_dim), -1)
        query = torch.cat((plain, _rotate(turned, rope, interleaved)), -1)
        rows = self._linear(x, prefix + "kv_a_proj_with_mqa")
        latent = self._norm(rows[:, :rank], prefix + "kv_a_layernorm.weight", eps)
        key_rope = _rotate(rows[:, None, rank:], rope, interleaved).expand(-1, heads, -1)
        both = self._linear(latent, prefix + "kv_b_proj").unflatten(-1, (heads, -1))
        key_plain, value = both.split((config.qk_nope_head_dim, config.v_head_dim), -1)
        key = torch.cat((key_plain, key_rope), -1)
        if selection is None:
            selection = self._choose(self._indexer_of(prefix, layer), x, latent_query, rope)
        logits = torch.einsum("qad,kad->aqk", query, key) * self._softmax_scale()
        probabilities = logits.masked_fill(~selection, -torch.inf).softmax(-1)
        mixed = torch.einsum("aqk,kad->qad", probabilities, value).flatten(1)
        return self._linear(mixed, prefix + "o_proj"), selection

    def _latent_query(self, prefix: str, x: Tensor) -> Tensor:
        eps = _LATENT_EPS if self.how.latent_eps is None else self.how.latent_eps
        return self._norm(self._linear(x, prefix + "q_a_proj"), prefix + "q_a_layernorm.weight", eps)

    def _softmax_scale(self) -> float:
        config = self.config
        width = {"head": config.qk_head_dim, "nope": config.qk_nope_head_dim, "latent": config.latent_dim}
        return width[self.how.softmax_width] ** -0.5 * config.rope_parameters.softmax_scale

    def _indexer_of(self, prefix: str, layer: int) -> str:
        """Prefix of the indexer that a layer uses: its own, or the one that should have served it."""
        own = prefix + "indexer."
        if own + "wk.weight" in self.weights:
            return own
        return f"layers.{self.config.share_plan.source(layer)}.self_attn.indexer."

    def _choose(self, indexer: str, x: Tensor, latent_query: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """The lightning indexer: bool `[S, S]`, the best `index_topk` keys of each query, equal scores by position."""
        size = len(x)
        causal = torch.ones(size, size, dtype=torch.bool).tril()
        topk = self.config.index_topk if self.how.topk is None else self.how.topk
        if size <= topk:
            return causal
        scores = self._index_scores(indexer, x, latent_query, rope).masked_fill(~causal, -torch.inf)
        ranked, order = scores.sort(dim=-1, descending=True, stable=True)
        largest = scores[topk:].masked_fill(~causal[topk:], 0.0).abs().amax(-1)
        self._look(ranked[topk:, topk - 1], ranked[topk:, topk], largest)
        return torch.zeros_like(causal).scatter(1, order[:, :topk], True) & causal

    def _index_scores(self, indexer: str, x: Tensor, latent_query: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """`[S, S]`: how much each query (row) wants each key."""
        config, how = self.config, self.how
        queries = self._linear(latent_query, indexer + "wq_b").unflatten(-1, (config.index_n_heads, -1))
        keys = self._key_norm(self._linear(x, indexer + "wk"), indexer)
        queries, keys = self._rotate_index(queries, rope), self._rotate_index(keys[:, None], rope)[:, 0]
        weights = self._head_weights(self._linear(x, indexer + "weights_proj"))
        dots = torch.einsum("qhd,kd->qhk", queries, keys)
        scores = torch.einsum("qh,qhk->qk", weights, dots.relu() if how.relu else dots)
        return scores.bfloat16().float() if how.score_type == "bfloat16" else scores

    def _look(self, last: Tensor, rejected: Tensor, size: Tensor | float = 1.0) -> None:
        """Take note of the gaps between the last chosen and the first rejected."""
        gaps = (last - rejected) / torch.as_tensor(size).clamp_min(1e-30)
        self._margin = min(self._margin, float(gaps.min()))

    def _head_weights(self, weights: Tensor) -> Tensor:
        how, scale = self.how, (self.config.index_n_heads * self.config.index_head_dim) ** -0.5
        if how.head_weights == "ones":
            weights = torch.ones_like(weights)
        elif how.head_weights == "softmax":
            weights = weights.softmax(-1)
        weights = weights * scale
        return weights.bfloat16().float() if how.score_type == "bfloat16" else weights

    def _key_norm(self, keys: Tensor, indexer: str) -> Tensor:
        weight, bias = self.weights[indexer + "k_norm.weight"], self.weights[indexer + "k_norm.bias"]
        if self.how.key_norm == "none":
            return keys
        if self.how.key_norm == "rms":
            return self._norm(keys, indexer + "k_norm.weight", self.how.key_eps)
        return F.layer_norm(keys, keys.shape[-1:], weight, bias, self.how.key_eps)

    def _rotate_index(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        if self.how.indexer_rope == "none":
            return x
        width = self.config.qk_rope_head_dim
        interleaved = self.config.indexer_rope_interleave != (self.how.indexer_rope == "flipped")
        return torch.cat((_rotate(x[..., :width], rope, interleaved), x[..., width:]), -1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def _swiglu(self, prefix: str, x: Tensor) -> Tensor:
        inner = F.silu(self._linear(x, prefix + "gate_proj")) * self._linear(x, prefix + "up_proj")
        return self._linear(inner, prefix + "down_proj")

    def _experts(self, prefix: str, x: Tensor) -> Tensor:
        """Routed experts, each over the tokens sent to it, and the shared ones."""
        weights = self._route(prefix, x)  # [S, X], zero where an expert is not chosen
        gate_up, down = self.weights[prefix + "experts.gate_up_proj"], self.weights[prefix + "experts.down_proj"]
        out = torch.zeros_like(x)
        for expert in range(self.config.n_routed_experts):
            rows = weights[:, expert].nonzero()[:, 0]
            if len(rows):
                gate, up = (x[rows] @ gate_up[expert].T).chunk(2, -1)
                out[rows] += weights[rows, expert, None] * ((F.silu(gate) * up) @ down[expert].T)
        if self.config.n_shared_experts and self.how.shared_experts:
            out = out + self._swiglu(prefix + "shared_experts.", x)
        return out

    def _route(self, prefix: str, x: Tensor) -> Tensor:
        config, how = self.config, self.how
        logits = self._linear(x, prefix + "gate")
        scores = logits.sigmoid() if how.expert_scores == "sigmoid" else logits.softmax(-1)
        bias = self.weights[prefix + "gate.e_score_correction_bias"]
        biased = scores if how.ignore_bias else scores + bias
        groups = config.n_group if how.groups is None else how.groups
        ranked = biased
        if groups > 1:
            by_group = biased.unflatten(-1, (groups, -1))
            totals, best = by_group.topk(2, -1).values.sum(-1).sort(dim=-1, descending=True, stable=True)
            if config.topk_group < groups:
                self._look(totals[:, config.topk_group - 1], totals[:, config.topk_group])
            kept = torch.zeros(len(x), groups, dtype=torch.bool).scatter(1, best[:, : config.topk_group], True)
            ranked = biased.masked_fill(~kept.repeat_interleave(by_group.shape[-1], -1), -torch.inf)
        ordered, order = ranked.sort(dim=-1, descending=True, stable=True)
        count = config.num_experts_per_tok
        if count < order.shape[1]:
            self._look(ordered[:, count - 1], ordered[:, count])
        chosen = order[:, :count]
        weights = torch.zeros_like(scores).scatter(
            1, chosen, (biased if how.biased_weights else scores).gather(1, chosen)
        )
        if config.norm_topk_prob if how.normalise is None else how.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * (config.routed_scaling_factor if how.routed_scale is None else how.routed_scale)


def _rotate(x: Tensor, rope: tuple[Tensor, Tensor], interleaved: bool) -> Tensor:
    """Turn the pairs of `[S, heads, P]` by the angles of their rows; the layout is kept."""
    cos, sin = rope[0][:, None], rope[1][:, None]
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
