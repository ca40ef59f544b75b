"""Rows in the form in which a cache keeps them, for kernels that read them in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from indexshare.ops.coded.decoding import decode_rows
from indexshare.ops.coded.layout import BF16, FP8, INT8, RowLayout


@dataclass(frozen=True, eq=False)
class CodedRows:
    """Rows `[S, W]` that are stored in another form; indexing decodes the rows asked for, and only them.

    They have no gradient.

    Attributes:
        stored: uint8 `[S, layout.num_bytes]`, rows may lie apart.
        layout: what the bytes are.
        dtype: of the rows that indexing gives.
    """

    stored: Tensor
    layout: RowLayout
    dtype: torch.dtype
    requires_grad = False

    def __getitem__(self, which: Any) -> Tensor:
        """Rows `[..., W]` by a slice or by integers `[...]`."""
        return decode_rows(self.stored[which], self.layout, self.dtype)

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the rows, not of what is stored."""
        return len(self.stored), self.layout.width

    @property
    def is_cpu(self) -> bool:
        """Whether they lie in the processor's memory."""
        return self.stored.is_cpu


Rows = Tensor | CodedRows
_KERNEL_KINDS = {BF16: 1, FP8: 2, INT8: 3}  # as in row_format.hpp; 0 is a row of the kernel's own type


def kernel_form(layout: RowLayout | None) -> tuple[int, int]:
    """Kind and number of precise values of rows, as the C++ kernels take them; None for rows as they are."""
    return (0, 0) if layout is None else (_KERNEL_KINDS[layout.kind], layout.precise)


def kernel_operand(rows: Rows) -> tuple[Tensor, int, int]:
    """What the C++ kernels take of rows: the tensor that is stored, each row in one piece, and its form."""
    stored = rows.stored if isinstance(rows, CodedRows) else rows
    form = kernel_form(rows.layout if isinstance(rows, CodedRows) else None)
    return (stored if stored.stride(1) == 1 else stored.contiguous(), *form)


def require_tensor(rows: Rows) -> None:
    """Refuse (ValueError) rows without a gradient where one is wanted."""
    if isinstance(rows, CodedRows):
        raise ValueError(
            f"rows of a cache in {rows.layout.kind} have no gradient; use torch.no_grad(), or a plain cache"
        )
