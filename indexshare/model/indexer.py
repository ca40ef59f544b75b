"""The lightning indexer of one Full layer: small queries and keys that choose which tokens the layer attends to.

Source: DeepSeek-V3.2 report (arXiv 2512.02556), section 2.1; IndexShare keeps one such module per group of layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indexshare import ops
from indexshare.config import ModelConfig
from indexshare.config.layers import INDEX_KEYS
from indexshare.model.forward_pass import ForwardPass
from indexshare.model.norm import LayerNorm
from indexshare.model.observe import IndexTensors
from indexshare.model.selection import Selection, dense_rows, sparse_rows
from indexshare.model.selectors import build_selector, content

KEY_NORM_EPS = 1e-6  # fixed by the published programs; not a configuration key


class Indexer(nn.Module):
    """Scores every earlier token; the selector keeps `index_topk`.

    Each head's first `qk_rope_head_dim` values are rotary, the rest plain. Inputs are detached: the indexer
    learns from its own loss only, and the model never through the indexer.

    Args:
        layer: under which it writes its keys.
        inputs: width of what queries are made from.
    """

    def __init__(self, config: ModelConfig, layer: int, inputs: int) -> None:
        super().__init__()
        self.layer = layer
        self.selector = build_selector(config)
        self.num_heads, self.head_dim = config.index_n_heads, config.index_head_dim
        self.rope_dim, self.topk = config.qk_rope_head_dim, config.index_topk
        self.interleave = config.indexer_rope_interleave
        self.wq_b = nn.Linear(inputs, self.num_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(config.hidden_size, self.head_dim, bias=False)
        self.k_norm = LayerNorm(self.head_dim, KEY_NORM_EPS)
        self.weights_proj = nn.Linear(config.hidden_size, self.num_heads, bias=False)
        self.scale = self.num_heads**-0.5 * self.head_dim**-0.5

    def _rotate(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        first = x[..., : self.rope_dim]
        if not x.requires_grad:  # nobody else has seen x
            ops.apply_rope(first, *rope, interleave=self.interleave, out=first)
            return x
        return torch.cat((ops.apply_rope(first, *rope, interleave=self.interleave), x[..., self.rope_dim :]), dim=-1)

    def keys(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Index keys `[N, D]` of hidden states `[N, hidden]`."""
        return self._rotate(self.k_norm(self.wk(x))[:, None], rope)[:, 0]

    def store(self, x: Tensor, pass_: ForwardPass) -> None:
        """Write the index keys of x `[N, hidden]`."""
        pass_.view.write(self.layer, INDEX_KEYS, self.keys(x.detach(), pass_.rope))

    def queries(self, x: Tensor, q_latent: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Index queries `[N, H, D]`, and float32 head weights `[N, H]` with both scales folded in."""
        q = self.wq_b(q_latent).view(-1, self.num_heads, self.head_dim)
        weights = ops.wide_linear(x, self.weights_proj.weight) * self.scale  # rounded, they flip near-tied choices
        return self._rotate(q, rope), weights

    def forward(self, x: Tensor, q_latent: Tensor, pass_: ForwardPass) -> tuple[Selection, IndexTensors | None]:
        """Write this batch's index keys and choose tokens for the rows whose context exceeds the limit.

        Args:
            x: `[N, hidden]` normalised hidden states; q_latent: `[N, inputs]`, what queries are made from.

        Returns:
            The selection, and the activations of all rows if the observer wants them (for the indexer's loss).
        """
        x, q_latent, rope = x.detach(), q_latent.detach(), pass_.rope
        keys = self.keys(x, rope)
        pass_.view.write(self.layer, INDEX_KEYS, keys)
        rows = sparse_rows(pass_.view, pass_.limit)
        tensors = None
        if pass_.shows_attention:
            q, weights = self.queries(x, q_latent, rope)
            tensors = IndexTensors(q, weights, keys)
            q, weights = q[rows], weights[rows]
        elif rows.numel() == 0:
            empty = rows.new_empty(0, self.topk)
            return Selection(pass_.limit, rows, empty, empty), None
        elif rows.numel() == x.shape[0]:
            q, weights = self.queries(x, q_latent, rope)
        else:
            q, weights = self.queries(x[rows], q_latent[rows], (rope[0][rows], rope[1][rows]))
        return self.select(q, weights, rows, pass_), tensors

    @torch.no_grad()
    def select(self, q: Tensor, weights: Tensor, rows: Tensor, pass_: ForwardPass) -> Selection:
        """The choice of each sequence's rows, q `[M, H, D]` and weights `[M, H]` in the order of `rows`."""
        view, limit = pass_.view, pass_.limit
        selector = pass_.selector or self.selector
        positions, slots, start = [], [], 0
        for i, span in enumerate(view.spans):
            count = span.length - dense_rows(span, limit)
            if count:
                part = slice(start, start + count)
                at = view.positions[rows[part]]
                if selector is content:
                    keys = view.stored(self.layer, INDEX_KEYS, i)
                    chosen = content(q[part], weights[part], keys, at, self.topk)
                else:
                    chosen = selector(q[part], weights[part], view.read(self.layer, INDEX_KEYS, i), at, self.topk)
                positions.append(chosen)
                at_slots = view.slots(i, chosen)
                # A query with a selection has more keys than it may choose: content leaves no place empty.
                slots.append(at_slots if selector is content else at_slots.masked_fill(chosen < 0, -1))
                start += count
        if not positions:
            empty = rows.new_empty(0, self.topk)
            return Selection(limit, rows, empty, empty)
        selection = Selection(limit, rows, _joined(positions), _joined(slots))
        view.announce(self.layer, selection.slots)
        return selection


def _joined(parts: list[Tensor]) -> Tensor:
    """One tensor of all parts; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
