"""The GLM-5.2 stack: embedding, decoder layers that pass a selection along, final norm, head, draft layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indexshare.cache.view import BatchView, InFlightView
from indexshare.config import ModelConfig, SharePlan
from indexshare.config.layers import model_tensors
from indexshare.model.draft.mtp import MTPLayer
from indexshare.model.experts import Experts, Router
from indexshare.model.forward_pass import ForwardPass
from indexshare.model.layer import DecoderLayer
from indexshare.model.norm import LayerNorm, RMSNorm
from indexshare.model.observe import Observer
from indexshare.model.own_type import in_own_type
from indexshare.model.selection import Selection
from indexshare.model.selectors import Selector


class GlmMoeDsa(nn.Module):
    """The whole model on one device, which computes in the type of its weights, under `torch.autocast` too.

    Parameter names are the public checkpoint's (see `checkpoint/names.py`).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.companions: dict[str, bytes] = {}  # other files of the checkpoint it was loaded from, by name
        # With its own initialisation, which nothing uses, an embedding on the meta device loads torch's compiler: 1 s.
        self.embed_tokens = nn.Embedding.from_pretrained(
            torch.zeros(config.vocab_size, config.hidden_size), freeze=False
        )
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.mtp = MTPLayer(config) if config.num_nextn_predict_layers else None
        self.weights_version = 0

    def weights_changed(self) -> None:
        """To be called by whoever puts other tensors or modules in the place of the model's: what knows them by their
        addresses, as the native step does, looks them up again. Changes in place need no call.

        `load_state_dict`, `to` and its kind, and `quantize_weights` call it themselves.
        """
        self.weights_version += 1

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in any module; with `assign` the tensors themselves become the weights."""
        self.weights_changed()
        return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.weights_changed()
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    @property
    def plan(self) -> SharePlan:
        """Which layers run the indexer."""
        return self.config.share_plan

    @in_own_type
    def forward(
        self, token_ids: Tensor, attention_mask: Tensor | None = None, *, full_attention_below: int = 0
    ) -> Tensor:
        """Logits of whole sequences, without a cache.

        Args:
            token_ids: int64 `[B, S]`.
            attention_mask: `[B, S]`, nonzero for real tokens (padding on either side, no holes needed); default all.
            full_attention_below: see `trunk`.

        Returns:
            Logits `[B, S, vocab_size]` in the model's dtype; rows of padding are zero.

        Raises:
            ValueError: wrong rank, ids out of range, a mask of another shape, or a sequence without a real token.
        """
        if token_ids.dim() != 2 or token_ids.numel() == 0:
            raise ValueError(
                f"token_ids has shape {tuple(token_ids.shape)}; expected [batch, sequence], both at least 1"
            )
        if attention_mask is None:
            attention_mask = torch.ones_like(token_ids)
        if attention_mask.shape != token_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, token_ids {tuple(token_ids.shape)}"
            )
        real = attention_mask.bool()
        lengths = real.sum(-1).tolist()
        if 0 in lengths:
            raise ValueError(f"sequence {lengths.index(0)} has no real token; every row needs at least one")
        view = InFlightView(lengths, token_ids.device)
        hidden = self.trunk(token_ids[real], view, full_attention_below=full_attention_below)
        logits = self.lm_head(hidden)
        if bool(real.all()):
            return logits.view(*token_ids.shape, -1)
        return logits.new_zeros(*token_ids.shape, logits.shape[-1]).masked_scatter(real[..., None], logits)

    @in_own_type
    def trunk(
        self,
        token_ids: Tensor,
        view: BatchView,
        *,
        full_attention_below: int = 0,
        selector: Selector | None = None,
        observer: Observer | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, `[N, hidden]`, of a packed batch.

        Args:
            token_ids: int64 `[N]`, the rows of `view`.
            view: where the rows stand in their sequences, and the cache they read and write.
            full_attention_below: queries with at most this much context attend to everything even beyond
                `index_topk`; `FULL_ATTENTION` switches selection off.
            selector: chooses in place of the model's own (`model/selectors.py`).
            observer: is offered each layer's activations.

        Raises:
            ValueError: an id outside the vocabulary, or a batch that does not match the view.
        """
        self.check_ids(token_ids, view)
        pass_ = ForwardPass.begin(
            self.config, view, full_attention_below=full_attention_below, selector=selector, observer=observer
        )
        x = self.embed_tokens(token_ids)
        selection: Selection | None = None
        for layer in self.layers:
            x, selection = layer(x, pass_, selection)
        return self.norm(x)

    def check_ids(self, token_ids: Tensor, view: BatchView) -> None:
        """Refuse ids outside the vocabulary and batches that do not match their view (`ValueError`)."""
        if token_ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"token_ids has dtype {token_ids.dtype}; expected integers (int64)")
        if token_ids.dim() != 1 or token_ids.numel() != view.num_rows:
            raise ValueError(f"token_ids has shape {tuple(token_ids.shape)}; the view has {view.num_rows} rows")
        longest = max((span.total for span in view.spans), default=0)
        if longest > self.config.max_position_embeddings:
            context = self.config.max_position_embeddings
            raise ValueError(f"a sequence has {longest} tokens, the model's context is {context}; shorten it")
        if token_ids.numel():
            low, high = (int(v) for v in token_ids.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                bad = low if low < 0 else high
                raise ValueError(f"token id {bad} is outside the vocabulary 0..{self.config.vocab_size - 1}")

    @in_own_type
    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits `[M, vocab_size]` of hidden states `[M, hidden]`."""
        return F.linear(hidden, self.lm_head.weight).float()

    @torch.no_grad()
    def initialise(self, seed: int = 0) -> GlmMoeDsa:
        """Fill every weight for training from scratch: normal with `initializer_range`, norms one, biases zero.

        Projections that add to the residual stream are scaled by `1 / sqrt(2 * layers)` (GPT-2 report, section 2.3).
        """
        generator = torch.Generator().manual_seed(seed)
        std, depth = self.config.initializer_range, (2 * self.config.num_hidden_layers) ** -0.5
        for module in self.modules():
            if isinstance(module, (RMSNorm, LayerNorm)):
                module.weight.fill_(1.0)
            elif isinstance(module, (nn.Linear, nn.Embedding, Router)):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * std)
            elif isinstance(module, Experts):
                for weight in (module.gate_up_proj, module.down_proj):
                    weight.copy_(torch.randn(weight.shape, generator=generator) * std)
        residual = {row.name for row in model_tensors(self.config) if row.residual}
        for name, parameter in self.named_parameters():
            if name in residual:
                parameter.mul_(depth)
            elif name.endswith("bias"):
                parameter.zero_()
        return self
