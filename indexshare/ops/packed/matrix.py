"""A matrix as the C++ side sees it (`matrix.hpp`), plain or packed."""

from __future__ import annotations

import ctypes

_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64

PLAIN, INT8, INT4 = 0, 1, 2  # kinds of weights


class Matrix(ctypes.Structure):
    """`y = W x + bias`, or a stack of such matrices without bias."""

    _fields_ = (
        *((name, _POINTER) for name in ("values", "scales", "bias")),
        *((name, _INTEGER) for name in ("kind", "rows", "inputs", "stride", "scale_stride")),
    )
