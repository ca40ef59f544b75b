"""A model that computes whole texts as it would over a cache in few bits: for evaluations, which keep no cache.

Every row that a layer leaves for later tokens is rounded by its codec when it is written, as `cache.paged` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

from torch import Tensor

from indexshare.cache.codecs import Codec, Pool, make_codec
from indexshare.cache.view import BatchView, InFlightView
from indexshare.config.layers import layer_streams
from indexshare.model.glm import GlmMoeDsa


class RoundedRows(BatchView):
    """A view in which rows are what a codec makes of them; everything else is the other view's."""

    def __init__(self, view: BatchView, codecs: Mapping[str, Codec]) -> None:
        self._view, self._codecs = view, codecs
        self.spans, self.positions = view.spans, view.positions

    @property
    def rotary_positions(self) -> Tensor:
        """Positions that RoPE turns by."""
        return self._view.rotary_positions

    def write(self, layer: int, stream: str, rows: Tensor) -> None:
        """Store rows as their codec reads them."""
        codec = self._codecs.get(stream)
        self._view.write(layer, stream, rows if codec is None else codec.decode(codec.encode(rows)))

    def read(self, layer: int, stream: str, sequence: int) -> Tensor:
        """Rounded rows of one sequence."""
        return self._view.read(layer, stream, sequence)

    def pool(self, layer: int, stream: str) -> Pool:
        """The other view's."""
        return self._view.pool(layer, stream)

    def slots(self, sequence: int, positions: Tensor) -> Tensor:
        """The other view's."""
        return self._view.slots(sequence, positions)

    def announce(self, layer: int, slots: Tensor) -> None:
        """Passed on."""
        self._view.announce(layer, slots)


def round_rows(model: GlmMoeDsa, names: Mapping[str, str]) -> GlmMoeDsa:
    """From now on the model's trunk computes whole texts over rounded rows; changes and returns `model`.

    An engine's views are left alone: it has caches of its own.

    Args:
        model: for inference; its draft layer stays as it is.
        names: codec by stream, from `cache.codecs.codecs_by_stream`.
    """
    dtype = model.embed_tokens.weight.dtype
    streams = {stream.name: stream for stream in layer_streams(model.config, 0)}  # layer 0 is Full: it has them all
    codecs = {name: make_codec(codec, streams[name], dtype) for name, codec in names.items()}
    trunk = model.trunk

    @wraps(trunk)
    def over_rounded_rows(token_ids: Tensor, view: BatchView, **settings: Any) -> Tensor:
        rounded = RoundedRows(view, codecs) if isinstance(view, InFlightView) else view
        return trunk(token_ids, rounded, **settings)

    model.trunk = over_rounded_rows  # type: ignore[method-assign]
    return model
