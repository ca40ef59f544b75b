"""Feed-forward layers: dense SwiGLU, and the mixture of experts with sigmoid routing.

Source: DeepSeek-V3 (arXiv 2412.19437), section 2.1.2; the correction bias is balanced as in arXiv 2408.15664.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indexshare import ops
from indexshare.config import ModelConfig
from indexshare.model.observe import Observer


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` for `[N, hidden]`."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, width, bias=False)
        self.up_proj = nn.Linear(hidden, width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shapes `[N, hidden]` -> `[N, hidden]`."""
        return self.down_proj(ops.swiglu(self.gate_proj(x), self.up_proj(x)))


class Router(nn.Module):
    """Sigmoid scores in float32; the bias takes part in the choice only, and is a buffer that training moves."""

    e_score_correction_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.n_routed_experts, config.hidden_size))
        bias = torch.zeros(config.n_routed_experts, dtype=torch.float32)
        self.register_buffer("e_score_correction_bias", bias)
        self.topk, self.groups, self.topk_groups = (
            config.num_experts_per_tok,
            config.n_group,
            config.topk_group,
        )
        self.normalise, self.scale = config.norm_topk_prob, config.routed_scaling_factor

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Follow `.to(...)`, but keep the bias in float32: a rounded bias changes which experts are chosen."""
        bias = self.e_score_correction_bias
        super()._apply(fn, recurse)
        moved = self.e_score_correction_bias
        if moved.dtype != torch.float32:
            self.e_score_correction_bias = bias.to(moved.device)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Expert ids int64 `[N, k]` and float32 weights `[N, k]` for `[N, hidden]`."""
        scores = ops.wide_linear(x, self.weight).sigmoid_()
        return ops.route(
            scores, self.e_score_correction_bias, topk=self.topk, groups=self.groups, topk_groups=self.topk_groups,
            normalise=self.normalise, scale=self.scale,
        )  # fmt: skip


class Experts(nn.Module):
    """Routed experts as two stacks: gate_up_proj `[X, 2I, hidden]` (gate rows first) and down_proj `[X, hidden, I]`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, hidden, width = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, width))

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of the chosen experts, `[N, hidden]`."""
        return ops.experts(x, ids, weights, self.gate_up_proj, self.down_proj)


class MoE(nn.Module):
    """Routed experts plus shared experts that every token uses."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.gate = Router(config)
        self.experts = Experts(config)
        shared = config.moe_intermediate_size * config.n_shared_experts
        self.shared_experts = SwiGLU(config.hidden_size, shared) if shared else None

    def forward(self, x: Tensor, observer: Observer | None = None) -> Tensor:
        """Shapes `[N, hidden]` -> `[N, hidden]`; tells the observer where the tokens went."""
        ids, weights = self.gate(x)
        if observer is not None:
            observer.routing(self.layer, ids)
        out = self.experts(x, ids, weights)
        return out if self.shared_experts is None else out + self.shared_experts(x)
