"""The draft layer's steps in C++: the decode step over one layer, under the trunk's embedding and head.

What it computes is `MTPLayer.forward` and `MTPLayer.step`, each followed by `GlmMoeDsa.logits`. The choice of the first
step stays on the C++ side and serves the later ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from indexshare.cache.paged import PagedView
from indexshare.model.forward_pass import attention_limit
from indexshare.model.glm import GlmMoeDsa
from indexshare.step.decoder import Decoder
from indexshare.step.native_step import NativeStep, draft_decoder, refusal_of_parts, tables_of


class NativeDraft(NativeStep):
    """Runs the steps of a model's draft layer; whether it can is asked as of the trunk's step.

    Args:
        model: with a draft layer, in evaluation mode.
    """

    def __init__(self, model: GlmMoeDsa) -> None:
        assert model.mtp is not None
        super().__init__(model)
        self._mtp = model.mtp
        self._parts = refusal_of_parts([model.mtp.layer])

    def first(
        self, ids: Sequence[int], states: Tensor, view: PagedView, *, wanted: Sequence[int],
        full_attention_below: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Step 1: writes the layer's latents and index keys of all rows.

        Args:
            ids: the token after each row's.
            states: `[N, hidden]`, trunk output after the final norm.
            view: rows and cache.
            wanted: rows whose logits are wanted, ascending.
            full_attention_below: as in `GlmMoeDsa.trunk`.

        Returns:
            `[N, hidden]` after `shared_head.norm`, and float32 logits `[len(wanted), vocab_size]`.
        """
        self.look_again()
        return self._run(ids, view, full_attention_below, wanted, states=states)

    def later(
        self, ids: Sequence[int], states: Tensor, view: PagedView, *, step: int, rows: Sequence[int],
        full_attention_below: int = 0,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Step 2, 3, ...: reads what step 1 wrote and chose, and writes nothing.

        Args:
            ids: the token `step` places after each row's.
            states: `[n, hidden]`, of the step before.
            view: the anchors alone, a row each.
            step: 2 or more.
            rows: where the anchors stood in the step before, ascending.
            full_attention_below: as in step 1.

        Returns:
            `[n, hidden]` and float32 logits `[n, vocab_size]`.
        """
        return self._run(ids, view, full_attention_below, None, states=states, ahead=step - 1, reuse=rows)

    def round(
        self, ids: Sequence[int], states: Tensor, view: PagedView, anchors: PagedView, *, steps: int,
        full_attention_below: int = 0,
    ) -> list[list[int]]:  # fmt: skip
        """`first`, then as many times `later` behind the most likely token, in one call.

        Args:
            ids, states, view: as in `first`.
            anchors: a view of the last row of each sequence.
            steps: tokens to draft, at least 1.
            full_attention_below: as in `first`.

        Returns:
            The tokens of each step, by sequence.
        """
        self.look_again()
        limit = attention_limit(self.model.config, full_attention_below)
        first, later = self._places(view, limit), self._places(anchors, limit, writes=False)
        return self._current().draft(
            ids, states, (view.positions, anchors.positions), view.written, (tables_of(view), tables_of(anchors)),
            anchors=[span.stop - 1 for span in view.spans], steps=steps, **self._of_cache(view.cache),
            block_size=view.cache.block_size, limit=limit,
            places=None if first is None or later is None else (first, later),
        )  # fmt: skip

    def _made(self) -> Decoder:
        return draft_decoder(self.model)

    @property
    def _modules(self) -> tuple[nn.Module, ...]:
        return self.model.embed_tokens, self._mtp, self.model.lm_head

    @property
    def _layers(self) -> Sequence[int]:
        return (self.model.config.num_hidden_layers,)
