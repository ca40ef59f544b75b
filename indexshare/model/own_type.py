"""The model computes in the type of its weights, whatever `torch.autocast` says.

Autocast would turn the results of some products into another type and leave the rest, and the kernels take one type.
Who wants bfloat16 loads the weights in bfloat16. `backward` is called outside of autocast, as torch advises.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def in_own_type(method: Callable[..., Result]) -> Callable[..., Result]:
    """A method whose first argument is a tensor, run without autocast on that tensor's device."""

    @functools.wraps(method)
    def run(self: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Result:
        kind = tensor.device.type
        if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
            return method(self, tensor, *args, **kwargs)
        with torch.autocast(kind, enabled=False):
            return method(self, tensor, *args, **kwargs)

    return run
