"""Where a model can be: the CPU, or a CUDA device that is there."""

from __future__ import annotations

import torch
from torch import nn


def usable_device(device: str | torch.device, name: str = "device") -> torch.device:
    """The device meant.

    Args:
        device: as torch takes it.
        name: what to call it in messages, such as `--device`.

    Raises:
        ValueError: torch does not know it, models do not run there (`meta`, `mps`, ...), or this machine has none.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError, ValueError):
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} is {str(device)!r}; expected cpu, cuda, or cuda and a number (cuda:1)")
    if found.type == "cpu":
        return found
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (found.index or 0) >= there:
        seen = f"torch sees {there} CUDA devices" if there or name != "device" else "this torch finds no CUDA device"
        use = "device='cpu'" if name == "device" else "cpu"
        raise ValueError(f"{name} is {str(device)!r}, but {seen}; use {use}")
    return found


def require_memory(model: nn.Module) -> None:
    """Refuse (ValueError) a model that has shapes and no values, as built under `torch.device("meta")`."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(f"{name} has no values (it is on the device 'meta'); load the model with load_model")
