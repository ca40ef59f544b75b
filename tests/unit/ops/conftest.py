"""Runs a test once for each fast implementation of the operations."""

from collections.abc import Iterator

import pytest

from indexshare import ops
from indexshare.ops.native import native


def fast_implementations() -> list[str]:
    """Those that this machine has."""
    return ["torch"] if native().library is None else ["torch", "cpu"]


@pytest.fixture(params=["torch", "cpu"])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Forces one implementation; skips the C++ kernels where they cannot be built."""
    if request.param not in fast_implementations():
        pytest.skip(native().reason)
    with ops.force(request.param):
        yield request.param
