"""One pre-norm decoder layer: attention and feed-forward around a residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from indexshare.config import ModelConfig
from indexshare.model.attention import build_attention
from indexshare.model.experts import MoE, SwiGLU
from indexshare.model.forward_pass import ForwardPass
from indexshare.model.norm import RMSNorm
from indexshare.model.selection import Selection


class DecoderLayer(nn.Module):
    """Layer `index` of the trunk, or the draft layer's decoder (`index == num_hidden_layers`, always Full)."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        source = index if index == config.num_hidden_layers else config.share_plan.source(index)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = build_attention(config, index, source)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config, index) if config.is_moe(index) else SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor, pass_: ForwardPass, selection: Selection | None) -> tuple[Tensor, Selection]:
        """Shapes `[N, hidden]` -> `[N, hidden]`, and the selection for later layers; see `Attention.forward`."""
        attended, selection = self.self_attn(self.input_layernorm(x), pass_, selection)
        return self._feed_forward(x + attended, pass_), selection

    def store(self, x: Tensor, pass_: ForwardPass) -> None:
        """Write the cache rows of x `[N, hidden]`, as `forward` does; nothing is attended."""
        self.self_attn.store(self.input_layernorm(x), pass_)

    def _feed_forward(self, x: Tensor, pass_: ForwardPass) -> Tensor:
        """The second half of the layer, residual included, `[N, hidden]`."""
        normed = self.post_attention_layernorm(x)
        return x + (self.mlp(normed, pass_.observer) if isinstance(self.mlp, MoE) else self.mlp(normed))

    def reuse(self, x: Tensor, pass_: ForwardPass, selection: Selection) -> Tensor:
        """A pass that only reads: queries from x `[N, hidden]`, keys and selection of an earlier pass.

        This is KVShare with IndexShare: the draft layer's later steps project queries and nothing else.
        """
        return self._feed_forward(x + self.self_attn.reuse(self.input_layernorm(x), pass_, selection), pass_)
