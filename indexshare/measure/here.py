"""This machine as the planner sees machines: its ceilings measured, its memory as it is."""

from __future__ import annotations

import torch

from indexshare.measure.ceilings import ceiling_jobs, ceilings_of
from indexshare.measure.timing import interleave
from indexshare.ops.native import native
from indexshare.planner.hardware import Machine
from indexshare.planner.machine import cpu_name, total_memory_bytes, usable_cores
from indexshare.text.files import plural

_REPEATS = 3
_NO_MEMORY = 4 << 30  # assumed where the system does not say


def this_machine(threads: int | None = None) -> Machine:
    """Measure the rate of products in float32 and bfloat16, and reading memory; a few seconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        rates, read = dict[str, float](), 0.0
        for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
            jobs = ceiling_jobs(dtype)
            found = ceilings_of(interleave(jobs, _REPEATS))
            rates[name] = found.matrix.median / 1e12
            read = max(read, found.read.median)
    finally:
        torch.set_num_threads(before)
    # Where the processor has no bfloat16 products ours widen the operands: the limit is float32, not an emulation.
    rates["bf16"] = max(rates.values())
    memory = total_memory_bytes() or _NO_MEMORY
    level = native().level or ""
    label = f"this machine ({cpu_name()}, {plural(usable_cores(), 'core')}, {level or 'torch'})"
    return Machine(
        name="here", label=label, kind="cpu", memory_gib=memory / 2**30, bandwidth_gb_s=read / 1e9, tflops=rates,
        level=level, source="measured",
    )  # fmt: skip
