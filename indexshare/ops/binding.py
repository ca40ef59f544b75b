"""What Python and the C++ kernels must agree on: the types of every entry point, the places of shared fields.

A call with undeclared types passes every number as a 32-bit integer and cuts addresses in half without a word; a field
in another place reads another field. So types are declared, and places compared, once: when a library loads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

from indexshare.ops.packed.matrix import Matrix

Structures = Sequence[type[ctypes.Structure]]

_TYPES = {
    "i": ctypes.c_int, "q": ctypes.c_int64, "f": ctypes.c_float, "d": ctypes.c_double,
    "p": ctypes.c_void_p, "s": ctypes.c_char_p, "v": None,
}  # fmt: skip

# Result, then arguments: i int, q int64_t, f float, d double, p any pointer, s a string, v nothing.
ENTRY_POINTS = {
    "indexshare_check_tiles": ("s", ""),
    "indexshare_packed_layout": ("s", ""),
    "indexshare_step_layout": ("s", ""),
    "indexshare_rms_norm": ("v", "ipqp qqd pqi"),
    "indexshare_rotate": ("v", "ipqq pp qqqi pqqi"),
    "indexshare_swiglu": ("v", "ipq pq qq pi"),
    "indexshare_wide_linear": ("i", "ipqp qqq pi"),
    "indexshare_encode_rows": ("v", "ipq qq qq pi"),
    "indexshare_select_topk": ("i", "ippp qqqp qqqqq pi"),
    "indexshare_sparse_mla": ("i", "ippqqqp qqqqqq f ppi"),
    "indexshare_sparse_mla_backward": ("i", "ippqp qqqqqq f pppp qi"),
    "indexshare_route": ("i", "pp qqqqq if ppi"),
    "indexshare_group": ("v", "p qqqq ppp"),
    "indexshare_experts": ("i", "ipq pp qqqqq ppppp i"),
    "indexshare_dequantize": ("v", "ipq pi"),
    "indexshare_decode_new": ("p", "ip"),
    "indexshare_decode_free": ("v", "p"),
    "indexshare_decode_max_rows": ("q", ""),
    "indexshare_decode_step": ("i", "pp"),
    "indexshare_draft_round": ("i", "ppp qp"),
}


def bind(library: ctypes.CDLL) -> str | None:
    """Declare the types of all entry points; why the library must not be used, or None.

    What a library lacks is passed over, so that a part of the sources can be built and tried.
    """
    for name, (result, arguments) in ENTRY_POINTS.items():
        function = getattr(library, name, None)
        if function is not None:
            function.restype = _TYPES[result]
            function.argtypes = [_TYPES[letter] for letter in arguments.replace(" ", "")]
    return layout_refusal(library, "indexshare_packed_layout", (Matrix,))


def layout_refusal(library: ctypes.CDLL, entry_point: str, structures: Structures) -> str | None:
    """Where structures differ from what the library says at an entry point, or None.

    It says a line for each structure and field, "Matrix.kind 24 8": offset and size in bytes.
    """
    ask = getattr(library, entry_point, None)
    if ask is None:
        return None
    theirs = dict(line.split(" ", 1) for line in ask().decode().splitlines())
    ours = {name: f"{offset} {size}" for name, offset, size in _places(structures)}
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            sides = (f"{side}: {_words(places.get(name))}" for side, places in (("C++", theirs), ("Python", ours)))
            return f"{name} is not the same on both sides ({', '.join(sides)})"
    return None


def _words(place: str | None) -> str:
    return "none" if place is None else "{1} bytes at {0}".format(*place.split())


def _places(structures: Structures) -> Iterator[tuple[str, int, int]]:
    for structure in structures:
        yield structure.__name__, 0, ctypes.sizeof(structure)
        for name, *_ in structure._fields_:
            field = getattr(structure, name)
            yield f"{structure.__name__}.{name}", field.offset, field.size
