"""Balance of the experts' loads, without a loss: a bias on the router's choice that moves against them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from indexshare.model.experts import MoE
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.observe import Observer
from indexshare.train.objectives.base import Objective, Tally


@dataclass(frozen=True, kw_only=True)
class Balance(Objective):
    """Reports `load_imbalance`, the largest load of an expert over the mean one in the worst layer, and moves biases.

    Attributes:
        rate: step of the correction bias after each update; 0 leaves it alone.
    """

    rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rate >= 0:
            raise ValueError(f"Balance has rate {self.rate}; expected zero or more")

    def observer(self, model: GlmMoeDsa) -> LoadObserver:
        """Counts the tokens of each expert."""
        return LoadObserver(model.config.num_hidden_layers + 1, model.config.n_routed_experts)

    def tally(self, seen: Observer) -> Tally:
        """`loads`, int64 [layers + 1, experts]; zero in layers without experts. The draft layer is the last."""
        assert isinstance(seen, LoadObserver)
        return {"loads": seen.loads()}

    def finish(self, model: GlmMoeDsa, tally: Tally) -> dict[str, float]:
        """Move the biases by the loads of the whole update."""
        loads = {layer: load for layer, load in enumerate(tally["loads"]) if load.any()}
        if not loads:
            return {}
        if self.rate > 0:
            _move(model, loads, self.rate)
        return {"load_imbalance": max(float(load.max() / load.float().mean()) for load in loads.values())}


class LoadObserver(Observer):
    """Tokens that each expert of each layer took in one pass."""

    def __init__(self, layers: int, experts: int) -> None:
        self._layers, self._experts = layers, experts
        self._loads: dict[int, Tensor] = {}

    def routing(self, layer: int, expert_ids: Tensor) -> None:
        """Count the tokens of each expert."""
        count = torch.bincount(expert_ids.flatten(), minlength=self._experts)
        self._loads[layer] = self._loads[layer] + count if layer in self._loads else count

    def loads(self) -> Tensor:
        """All layers' counts, int64 [layers, experts], on the device of the pass."""
        device = next((load.device for load in self._loads.values()), None)
        none = torch.zeros(self._experts, dtype=torch.int64, device=device)
        return torch.stack([self._loads.get(layer, none) for layer in range(self._layers)])


def _move(model: GlmMoeDsa, loads: dict[int, Tensor], rate: float) -> None:
    for index, load in loads.items():
        draft = index == model.config.num_hidden_layers
        layer = model.mtp.layer if draft and model.mtp is not None else model.layers[index]
        assert isinstance(layer.mlp, MoE)
        update_expert_bias(layer.mlp.gate.e_score_correction_bias, load, rate)


def update_expert_bias(bias: Tensor, load: Tensor, rate: float) -> None:
    """Auxiliary-loss-free balancing (arXiv 2408.15664): raise the bias of experts with less than the mean load.

    Args:
        bias: float32 [E], `e_score_correction_bias`, changed in place.
        load: float or int [E], tokens each expert took in the update.
        rate: size of one correction.
    """
    load = load.to(bias.dtype)
    with torch.no_grad():
        bias.add_(torch.sign(load.mean() - load), alpha=rate)
