"""The multi-token-prediction (draft) layer: one decoder layer with its own indexer, run for several steps.

Slot i holds the pair (embedding of token i+1, hidden state of token i) and predicts token i+2. Later steps reuse
the keys and the selection of the first step (IndexShare + KVShare in the GLM-5.2 release notes): a step j query
sees what the first step's query at the same slot saw, never a slot made by drafting. The rule is the same at all
context lengths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from indexshare.cache.view import BatchView
from indexshare.config import ModelConfig
from indexshare.model.forward_pass import ForwardPass
from indexshare.model.layer import DecoderLayer
from indexshare.model.norm import RMSNorm
from indexshare.model.observe import Observer
from indexshare.model.own_type import in_own_type
from indexshare.model.selection import Selection
from indexshare.model.selectors import Selector


@dataclass(frozen=True)
class DraftState:
    """`hidden` `[N, hidden]` after `shared_head.norm` feeds the head and the next step; `selection` is step 1's."""

    hidden: Tensor
    selection: Selection

    def at(self, rows: Tensor) -> DraftState:
        """The state of some rows alone, int64 `[M]` ascending: the anchors from which drafting goes on."""
        chosen = torch.isin(self.selection.rows, rows)
        selection = Selection(
            self.selection.limit,
            torch.searchsorted(rows, self.selection.rows[chosen]),
            self.selection.positions[chosen],
            self.selection.slots[chosen],
        )
        return DraftState(self.hidden[rows], selection)


class MTPLayer(nn.Module):
    """Embedding and language-model head are the trunk's; everything else is the layer's own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.config = config
        self.enorm = RMSNorm(hidden, config.rms_norm_eps)
        self.hnorm = RMSNorm(hidden, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * hidden, hidden, bias=False)
        self.layer = DecoderLayer(config, config.num_hidden_layers)
        self.shared_head_norm = RMSNorm(hidden, config.rms_norm_eps)

    def _mix(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        """Input of the decoder layer, `[N, hidden]`: the embedding half first."""
        return self.eh_proj(torch.cat((self.enorm(embeddings), self.hnorm(hidden)), dim=-1))

    @in_own_type
    def forward(
        self, embeddings: Tensor, hidden: Tensor, view: BatchView,
        *, full_attention_below: int = 0, selector: Selector | None = None, observer: Observer | None = None,
    ) -> DraftState:  # fmt: skip
        """Step 1, which writes the layer's latents and index keys and runs its indexer.

        Args:
            embeddings: `[N, hidden]`, the trunk's embedding of the token after each row's.
            hidden: `[N, hidden]`, trunk output after the final norm.
            view: rows and cache; the layer's index in it is `num_hidden_layers`.
            full_attention_below, selector, observer: as in `GlmMoeDsa.trunk`.
        """
        pass_ = ForwardPass.begin(
            self.config, view, full_attention_below=full_attention_below, selector=selector, observer=observer
        )
        out, selection = self.layer(self._mix(embeddings, hidden), pass_, None)
        return DraftState(self.shared_head_norm(out), selection)

    @in_own_type
    def store(self, embeddings: Tensor, hidden: Tensor, view: BatchView) -> None:
        """What step 1 writes, and nothing else of it: latents and index keys; arguments as in `forward`."""
        self.layer.store(self._mix(embeddings, hidden), ForwardPass.begin(self.config, view))

    @in_own_type
    def step(self, embeddings: Tensor, state: DraftState, view: BatchView, step: int) -> DraftState:
        """Step `step` (2, 3, ...): reads what step 1 wrote and writes nothing.

        Args:
            embeddings: `[N, hidden]`, embedding of the token `step` places after each row's.
            state: result of the step before, on the same rows.
            view: the view of step 1 (every row is its own anchor), or one whose rows are the anchors alone
                (then `state` is that of `DraftState.at`).
            step: at least 2; the rotary position is the anchor's plus `step - 1`.
        """
        if step < 2:
            raise ValueError(f"step is {step}; the first step is the layer's forward pass, later ones start at 2")
        pass_ = ForwardPass.begin(self.config, view, ahead=step - 1)
        out = self.layer.reuse(self._mix(embeddings, state.hidden), pass_, state.selection)
        return DraftState(self.shared_head_norm(out), state.selection)
