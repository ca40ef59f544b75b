"""Grouped products of experts: tokens sorted by expert, one product per expert that has any.

Shared by implementations that sort (`group`) and activate in their own ways; see the reference for shape letters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Places for the pairs of `ids` `[N, k]` in order of expert: contract in `torch_impl.group`.
Group = Callable[[Tensor, int, int], tuple[list[int], Tensor, Tensor]]

# Rows of an expert's product, or a multiple, without gradients: the CPU library multiplies one to three rows that are
# left over in another way, and a token's last bits would depend on how many others chose its experts.
INFERENCE_GRAIN = 16


def grouped_experts(
    x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor,
    *, group: Group, activation: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Weighted sum of the chosen experts, `[N, H]`: tokens sorted by expert, one product per expert that has any.

    The weighted outputs are put back in token order and summed there, so that the result does not depend on the
    other tokens of the batch. Differentiable in x, weights, gate_up and down.
    """
    if ids.shape[0] == 0:
        return torch.zeros_like(x)
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, weights, gate_up, down))
    plan = _Grouping(ids, gate_up.shape[0], group, least=1 if wanted else INFERENCE_GRAIN)
    if wanted:
        return _Experts.apply(x, weights, gate_up, down, plan, activation)
    inner = activation(*_grouped(x.index_select(0, plan.tokens), gate_up, plan).chunk(2, dim=-1))
    return plan.combine(_grouped(inner, down, plan), weights.to(x.dtype))


class _Grouping:
    """Places for token-expert pairs, in order of expert: `tokens` `[P]` are the tokens at the places.

    Each expert's stretch is padded with copies of token 0 to a whole number of `_grain` rows, `least` at least (a power
    of two). The CPU library compiles
    a kernel for every size of a product and keeps about a thousand; without the padding nearly every product of
    a training step has a size of its own, and runs at less than half the speed of one that was seen before.
    """

    def __init__(self, ids: Tensor, num_experts: int, group: Group, least: int = 1) -> None:
        self.topk = ids.shape[1]
        stops, self.tokens, self.inverse = group(ids, num_experts, max(least, _grain(ids.numel(), num_experts)))
        stretches = [slice(*bounds) for bounds in itertools.pairwise([0, *stops])]
        self.groups = [(e, part) for e, part in enumerate(stretches) if part.stop > part.start]

    def spread(self, weights: Tensor) -> Tensor:
        """Weights `[N, k]` at their places `[P]`, zero in the padding."""
        return weights.new_zeros(self.tokens.shape[0]).index_copy_(0, self.inverse, weights.flatten())

    def combine(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum each token's rows, in order of expert id and times `weights [N, k]`: `[P, H]` -> `[N, H]`."""
        bags = self.inverse.view(-1, self.topk)
        return F.embedding_bag(bags, rows, mode="sum", per_sample_weights=weights)


def _grain(pairs: int, num_experts: int) -> int:
    """A power of two near a sixteenth of an expert's mean load, at least 1: a few per cent of padding."""
    return 1 << max(0, (pairs // (16 * num_experts)).bit_length() - 1)


def _grouped(rows: Tensor, weight: Tensor, plan: _Grouping) -> Tensor:
    """`rows[group] @ weight[expert].T` for every group, `[P, out]`."""
    out = rows.new_empty(rows.shape[0], weight.shape[1])
    for expert, part in plan.groups:
        torch.mm(rows[part], weight[expert].t(), out=out[part])
    return out


class _Experts(torch.autograd.Function):
    """Keeps the sorted rows and the first product only. Autograd through a loop of experts would build full-size
    zero gradients for each; routing weights meet the narrow inner activations here, never rows of width H."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, plan: _Grouping,
        activation: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:  # fmt: skip
        rows = x.index_select(0, plan.tokens)
        hidden = _grouped(rows, gate_up, plan)
        ctx.save_for_backward(rows, hidden, weights, gate_up, down)
        ctx.plan = plan
        inner = activation(*hidden.chunk(2, dim=-1))
        return plan.combine(_grouped(inner, down, plan), weights.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, hidden, weights, gate_up, down = ctx.saved_tensors
        plan: _Grouping = ctx.plan
        d_out = grad.index_select(0, plan.tokens)  # before the routing weight
        gate, up = hidden.chunk(2, dim=-1)
        active = F.silu(gate)
        inner = (active * up).to(weights.dtype)
        d_inner = _grouped(d_out, down.transpose(1, 2), plan).to(weights.dtype)
        d_weights = (d_inner * inner).sum(-1)[plan.inverse].view_as(weights)
        factor = plan.spread(weights)[:, None]
        inner, d_inner = inner.mul_(factor).to(rows.dtype), d_inner.mul_(factor).to(rows.dtype)
        d_gate = torch.ops.aten.silu_backward(d_inner * up, gate)
        d_hidden = torch.cat((d_gate, d_inner * active), dim=-1)
        d_down, d_gate_up = torch.zeros_like(down), torch.zeros_like(gate_up)
        for expert, part in plan.groups:
            torch.mm(d_out[part].t(), inner[part], out=d_down[expert])
            torch.mm(d_hidden[part].t(), rows[part], out=d_gate_up[expert])
        d_x = plan.combine(_grouped(d_hidden, gate_up.transpose(1, 2), plan))
        return d_x, d_weights, d_gate_up, d_down, None, None
