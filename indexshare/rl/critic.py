"""The critic: a trunk of the policy's kind with a number in place of a distribution over tokens."""

from __future__ import annotations

from torch import Tensor, nn

from indexshare.config.model import ModelConfig
from indexshare.model.glm import GlmMoeDsa


class Critic(GlmMoeDsa):
    """Values of states, read from the last hidden state. Its parameters are all its own.

    Args:
        config: of the policy; the critic has no draft layer, and its head over the vocabulary is not used.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config.replace(num_nextn_predict_layers=0))
        self.value_head = nn.Linear(config.hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @classmethod
    def like(cls, policy: GlmMoeDsa) -> Critic:
        """With the policy's weights and a head that says 0."""
        critic = cls(policy.config)
        weights = {name: tensor for name, tensor in policy.state_dict().items() if not name.startswith("mtp.")}
        missing, surplus = critic.load_state_dict(weights, strict=False)
        assert set(missing) == {"value_head.weight", "value_head.bias"} and not surplus, (missing, surplus)
        return critic.to(policy.embed_tokens.weight.device, policy.embed_tokens.weight.dtype)

    def values(self, hidden: Tensor) -> Tensor:
        """Values, float32 [N], of hidden states [N, H]: of the state that each of them has seen whole."""
        value: Tensor = self.value_head(hidden)
        return value[:, 0].float()

    def train_only(self, part: str) -> None:
        """Let gradients reach `all` of it, or feed-forward layers and head alone (`ffn`, as in SAO); no indexer."""
        for name, parameter in self.named_parameters():
            wanted = ".indexer." not in name and not name.startswith("lm_head")
            parameter.requires_grad_(wanted and (part == "all" or ".mlp." in name or name.startswith("value_head")))


def explained_variance(values: Tensor, targets: Tensor) -> float:
    """1 minus the share of the targets' variance that the critic leaves, 0 where they do not vary."""
    spread = float(targets.var(correction=0)) if len(targets) else 0.0
    return 1.0 - float((targets - values).var(correction=0)) / spread if spread > 1e-12 else 0.0
