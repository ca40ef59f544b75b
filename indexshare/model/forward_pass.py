"""What the layers of one forward pass have in common."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from indexshare import ops
from indexshare.cache.view import BatchView
from indexshare.config import ModelConfig
from indexshare.model.observe import Observer
from indexshare.model.selectors import Selector


@dataclass(frozen=True, kw_only=True)
class ForwardPass:
    """All that a layer is given beside its input and the selection.

    Attributes:
        view: the batch, and the cache that it reads and writes.
        rope: rotary tables of the rows.
        limit: queries with at most this much context attend to everything.
        selector: chooses in place of the one that the model has, if any is given.
        observer: is offered each layer's activations.
        reusing: layers that take the incoming selection although they have an indexer: another plan, on trial.
    """

    view: BatchView
    rope: tuple[Tensor, Tensor]
    limit: int
    selector: Selector | None = None
    observer: Observer | None = None
    reusing: frozenset[int] = frozenset()

    @property
    def shows_attention(self) -> bool:
        """Whether the observer wants attention inputs, which cost more than inference needs."""
        return self.observer is not None and self.observer.wants_attention

    @classmethod
    def begin(
        cls, config: ModelConfig, view: BatchView, *, full_attention_below: int = 0, ahead: int = 0,
        selector: Selector | None = None, observer: Observer | None = None,
    ) -> ForwardPass:  # fmt: skip
        """A pass over a view; `ahead` is added to the rotary positions of its rows."""
        limit = attention_limit(config, full_attention_below)
        rope = rope_tables(config, view.rotary_positions + ahead if ahead else view.rotary_positions)
        return cls(view=view, rope=rope, limit=limit, selector=selector, observer=observer)


def attention_limit(config: ModelConfig, full_attention_below: int = 0) -> int:
    """The longest context that is attended in full: what fits the selection, or more if a caller asks for it."""
    return max(config.index_topk, full_attention_below)


def rope_tables(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary tables of a model for int64 positions `[N]`."""
    parameters = config.rope_parameters
    frequencies = parameters.inverse_frequencies(config.qk_rope_head_dim)
    return ops.rope_tables(frequencies, positions, parameters.table_scale)
