"""Faults planted in transformers' own GLM model: by another `config.json`, or in its modules after loading."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from tests.parity.harness import transformers

MODULE = transformers.models.glm_moe_dsa.modeling_glm_moe_dsa
Model = Any
Rotate = Callable[..., tuple[torch.Tensor, torch.Tensor]]

# Keys of config.json that make transformers compute as the hypothesis of that name.
BY_CONFIG: dict[str, dict[str, Any]] = {
    "dense-fallback": {"index_topk": 1 << 30},
    "norm-eps-1e-6": {"rms_norm_eps": 1e-6},
    "rope-theta-1e6": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "rope-theta-8e6": {"rope_parameters": {"rope_type": "default", "rope_theta": 8e6}},
    "routed-scale-missing": {"routed_scaling_factor": 1.0},
    "expert-weights-not-normalised": {"norm_topk_prob": False},
    "expert-groups-ignored": {"n_group": 1, "topk_group": 1},
}


def edited(directory: Path, target: Path, changes: dict[str, Any]) -> Path:
    """The same files under another configuration."""
    target.mkdir()
    for file in directory.iterdir():
        if file.name != "config.json":
            (target / file.name).symlink_to(file)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")
    return target


def _attentions(model: Model) -> list[Any]:
    return [layer.self_attn for layer in model.model.layers]


def _indexers(model: Model) -> list[Any]:
    return [attention.indexer for attention in _attentions(model) if attention.indexer is not None]


def _experts(model: Model) -> list[Any]:
    return [layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "gate")]


def _rotate_halves(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, axis: int
) -> tuple[torch.Tensor, ...]:
    cos, sin = cos.unsqueeze(axis), sin.unsqueeze(axis)
    turned = [torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), -1) for x in (q, k)]
    return q * cos + turned[0] * sin, k * cos + turned[1] * sin


def rotating(in_indexer: str = "as it is", in_attention: str = "as it is") -> Rotate:
    """In place of transformers' rotation, which the indexer calls with its axis and the attention without."""
    right = MODULE.apply_rotary_pos_emb_interleave

    def rotate(q: Any, k: Any, cos: Any, sin: Any, position_ids: Any = None, unsqueeze_dim: int = 1) -> Any:
        how = in_indexer if unsqueeze_dim == 2 else in_attention
        if how == "none":
            return q, k
        if how == "halves":
            return _rotate_halves(q, k, cos, sin, unsqueeze_dim)
        return right(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)

    return rotate


# Names of the module that are replaced while it runs.
BY_FUNCTION: dict[str, Callable[[], dict[str, Any]]] = {
    "indexer-rope-layout": lambda: {"apply_rotary_pos_emb_interleave": rotating(in_indexer="halves")},
    "indexer-rope-missing": lambda: {"apply_rotary_pos_emb_interleave": rotating(in_indexer="none")},
    "attention-rope-layout": lambda: {"apply_rotary_pos_emb_interleave": rotating(in_attention="halves")},
    "relu-missing": lambda: {"F": SimpleNamespace(relu=lambda x: x, linear=F.linear)},
}


class _Rms(torch.nn.Module):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class _HeadWeights(torch.nn.Module):
    def __init__(self, right: torch.nn.Linear, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.weight, self.change = right.weight, change

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.change(F.linear(x, self.weight))


class _Router(torch.nn.Module):
    """Transformers' router without groups, with other scores, or with the bias in the weights."""

    def __init__(self, right: Any, scores: Callable[[torch.Tensor], torch.Tensor], biased: bool) -> None:
        super().__init__()
        self.right, self.scores, self.biased = right, scores, biased

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        right = self.right
        logits = F.linear(x.view(-1, right.hidden_dim).float(), right.weight.float())
        scores = self.scores(logits)
        biased = scores + right.e_score_correction_bias
        chosen = biased.topk(right.top_k, -1).indices
        weights = (biased if self.biased else scores).gather(1, chosen)
        if right.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return logits, weights * right.routed_scaling_factor, chosen


def _norms(model: Model, make: Callable[[Any], torch.nn.Module]) -> None:
    for indexer in _indexers(model):
        indexer.k_norm = make(indexer.k_norm)


def _head_weights(model: Model, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for indexer in _indexers(model):
        indexer.weights_proj = _HeadWeights(indexer.weights_proj, change)


def _routers(model: Model, scores: Callable[[torch.Tensor], torch.Tensor], biased: bool = False) -> None:
    for experts in _experts(model):
        assert experts.gate.num_group == 1
        experts.gate = _Router(experts.gate, scores, biased)


def _no_sharing(model: Model) -> None:
    indexer = None
    for attention in _attentions(model):
        indexer = attention.indexer or indexer
        attention.indexer = copy.copy(indexer)


def _scales(model: Model, width: Callable[[Any], int]) -> None:
    for attention in _attentions(model):
        attention.scaling = width(attention) ** -0.5


def _latent_eps(model: Model) -> None:
    for attention in _attentions(model):
        attention.q_a_layernorm.variance_epsilon = attention.kv_a_layernorm.variance_epsilon = 1e-5


def _no_bias(model: Model) -> None:
    for experts in _experts(model):
        experts.gate.e_score_correction_bias.zero_()


def _no_shared_experts(model: Model) -> None:
    for experts in _experts(model):
        for parameter in experts.shared_experts.down_proj.parameters():
            parameter.zero_()


# What is done to the model once it is loaded.
BY_MODULE: dict[str, Callable[[Model], None]] = {
    "key-norm-rms": lambda model: _norms(model, lambda right: _Rms(right.weight)),
    "key-norm-missing": lambda model: _norms(model, lambda right: torch.nn.Identity()),
    "head-weights-missing": lambda model: _head_weights(model, torch.ones_like),
    "head-weights-softmax": lambda model: _head_weights(model, lambda weights: weights.softmax(-1)),
    "sharing-ignored": _no_sharing,
    "softmax-scale-nope": lambda model: _scales(model, lambda a: a.qk_nope_head_dim),
    "softmax-scale-latent": lambda model: _scales(model, lambda a: a.kv_lora_rank + a.qk_rope_head_dim),
    "latent-norm-eps-1e-5": _latent_eps,
    "expert-bias-ignored": _no_bias,
    "expert-bias-as-weight": lambda model: _routers(model, torch.sigmoid, biased=True),
    "expert-softmax": lambda model: _routers(model, lambda logits: logits.softmax(-1)),
    "shared-experts-missing": _no_shared_experts,
}
FAULTS = (*BY_CONFIG, *BY_FUNCTION, *BY_MODULE)
