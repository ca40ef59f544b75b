"""One pre-norm decoder layer: attention and feed-forward around a residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from indexshare.cache.view import BatchView
from indexshare.config import ModelConfig
from indexshare.model.mla import MLA
from indexshare.model.moe import MoE, SwiGLU
from indexshare.model.norm import RMSNorm
from indexshare.model.observe import Observer
from indexshare.model.selection import Selection


class DecoderLayer(nn.Module):
    """Layer `index` of the trunk, or the draft layer's decoder (`index == num_hidden_layers`, always Full)."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        draft = index == config.num_hidden_layers
        self.index = index
        self.source = index if draft else config.share_plan.source(index)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MLA(config, full=draft or config.share_plan.is_full(index))
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if config.is_moe(index) else SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], view: BatchView, selection: Selection | None,
        *, limit: int, observer: Observer | None = None,
    ) -> tuple[Tensor, Selection]:  # fmt: skip
        """Shapes `[N, hidden]` -> `[N, hidden]`, and the selection for later layers. Arguments as in `MLA.forward`."""
        attended, selection = self.self_attn(
            self.input_layernorm(x), rope, view, self.index, selection,
            limit=limit, source=self.source, observer=observer,
        )  # fmt: skip
        return self.feed_forward(x + attended, observer), selection

    def feed_forward(self, x: Tensor, observer: Observer | None = None) -> Tensor:
        """The second half of the layer, residual included, `[N, hidden]`."""
        normed = self.post_attention_layernorm(x)
        return x + (self.mlp(normed, self.index, observer) if isinstance(self.mlp, MoE) else self.mlp(normed))

    def reuse(self, x: Tensor, rope: tuple[Tensor, Tensor], view: BatchView, selection: Selection) -> Tensor:
        """A pass that only reads: queries from x `[N, hidden]`, keys and selection of an earlier pass.

        This is KVShare with IndexShare: the draft layer's later steps project queries and nothing else.
        """
        _, q = self.self_attn.queries(self.input_layernorm(x), rope)
        return self.feed_forward(x + self.self_attn.attend(q, view, self.index, selection))
