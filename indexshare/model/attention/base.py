"""What a decoder layer calls to attend, whatever the kind of attention."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from indexshare.model.forward_pass import ForwardPass
from indexshare.model.selection import Selection


class Attention(nn.Module, ABC):
    """Attention of one layer.

    A kind of attention is a subclass that is built from `(config, layer, source)`. In Full layers it owns what
    selects; in Shared layers it attends to what an earlier layer selected.

    Args:
        layer: index of the layer, under which it writes its rows of the cache.
        source: the Full layer whose selection it attends to: itself, or an earlier one.
    """

    def __init__(self, layer: int, source: int) -> None:
        super().__init__()
        self.layer, self.source = layer, source

    @property
    def full(self) -> bool:
        """Whether the layer selects for itself."""
        return self.source == self.layer

    @abstractmethod
    def forward(self, x: Tensor, pass_: ForwardPass, selection: Selection | None) -> tuple[Tensor, Selection]:
        """Write this batch's rows of the cache, select if the layer is Full, attend.

        Args:
            x: `[N, hidden]` normalised hidden states.
            pass_: the forward pass.
            selection: what the last Full layer chose; ignored by Full layers, required by Shared ones.

        Returns:
            `[N, hidden]`, and the selection that was used.
        """

    @abstractmethod
    def store(self, x: Tensor, pass_: ForwardPass) -> None:
        """Write the rows of the cache that `forward` writes for x `[N, hidden]`; select and attend to nothing."""

    @abstractmethod
    def reuse(self, x: Tensor, pass_: ForwardPass, selection: Selection) -> Tensor:
        """Attend to what an earlier pass wrote and selected; writes nothing. `[N, hidden]` from `[N, hidden]`."""

    def inherited(self, selection: Selection | None) -> Selection:
        """The selection of a Shared layer.

        Raises:
            ValueError: there is none.
        """
        if selection is None:
            raise ValueError(f"layer {self.layer} is Shared but no earlier layer passed a selection")
        return selection
