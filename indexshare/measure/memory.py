"""Peak memory of a prompt against the plan. Every length runs in its own process: a peak covers a whole process.

    python -m indexshare.measure.memory NAME DTYPE LENGTH DECODE_TOKENS THREADS CACHE_DTYPE INDEX_CACHE_DTYPE

is such a process (`-` for what is not given). It writes `progress DONE TOTAL` as it reads, and `result {...}` at last.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from indexshare.config import preset
from indexshare.engine.scheduler import PREFILL_CHUNK
from indexshare.measure.runs import engine_for, random_prompt, request
from indexshare.measure.subject import Subject
from indexshare.planner.machine import peak_memory_bytes, resident_memory_bytes
from indexshare.planner.memory import MemoryPlan, plan_memory

Progress = Callable[[int, int], None]
WITHIN = 0.10  # how far from the plan a peak may lie before the report says so


@dataclass(frozen=True, kw_only=True)
class MemoryRun:
    """What the process found.

    Attributes:
        program_bytes: resident before the model was loaded, after a tiny one had run (libraries, compiled kernels).
        loaded_bytes: resident with the model.
        peak_bytes: most ever resident, model, prompt and decoding.
        prefill_s: seconds of the prompt; decode_s: median seconds of a token after it.
    """

    program_bytes: int
    loaded_bytes: int
    peak_bytes: int
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, kw_only=True)
class MemoryResult:
    """One length: what was planned, and what was found or why nothing was."""

    length: int
    plan: MemoryPlan
    run: MemoryRun | None
    failure: str | None = None

    @property
    def planned_peak(self) -> int | None:
        """The program as it was before it loaded the model, and the plan on top of it."""
        return None if self.run is None else self.run.program_bytes + self.plan.total

    @property
    def of_plan(self) -> float | None:
        """Measured peak over the planned one; 1 is a perfect plan."""
        return None if self.run is None or self.planned_peak is None else self.run.peak_bytes / self.planned_peak

    @property
    def as_planned(self) -> bool:
        """Whether the peak was measured and lies within `WITHIN` of the plan."""
        share = self.of_plan
        return share is not None and abs(share - 1) <= WITHIN

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        facts: dict[str, Any] = {"length": self.length}
        facts |= {f"planned_{name}_bytes": value for name, value in asdict(self.plan).items()}
        facts |= {"planned_peak_bytes": self.planned_peak, "measured_over_planned": self.of_plan}
        facts |= {"as_planned": self.as_planned, "failure": self.failure}
        return facts | ({} if self.run is None else asdict(self.run))


def measure_memory(
    subject: Subject, length: int, decode_tokens: int, threads: int, *, on_prefill: Progress | None = None
) -> MemoryResult:
    """Start the process and wait for it; a process that the system ends (no memory left) is a result too."""
    plan = plan_memory(
        subject.config, length, element_bytes=subject.element_bytes, chunk=PREFILL_CHUNK, row_bytes=subject.row_bytes
    )
    dtype = str(subject.dtype).removeprefix("torch.")
    command = [sys.executable, "-m", "indexshare.measure.memory", subject.name, dtype]
    command += [str(length), str(decode_tokens), str(threads), *(name or "-" for name in subject.caches)]
    run = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            word, _, rest = line.partition(" ")
            if word == "result":
                run = MemoryRun(**json.loads(rest))
            elif word == "progress" and on_prefill is not None:
                done, total = rest.split()
                on_prefill(int(done), int(total))
    failure = None if run is not None else _why(process.returncode)
    return MemoryResult(length=length, plan=plan, run=run, failure=failure)


def _why(returncode: int) -> str:
    if returncode < 0:
        return f"the system ended the process (signal {-returncode}); most likely no memory was left"
    return f"the process ended with code {returncode}; what it said is above"


def run_here(subject: Subject, length: int, decode_tokens: int, on_prefill: Progress | None = None) -> MemoryRun:
    """The measurement itself; peaks are of this whole process."""
    _warm_up(subject.dtype)
    program = resident_memory_bytes()
    model = subject.load()
    loaded = resident_memory_bytes()
    llm = engine_for(model, length, decode_tokens, caches=subject.caches)
    run = request(llm, random_prompt(subject.config, length), decode_tokens, on_prefill=on_prefill)
    return MemoryRun(
        program_bytes=program,
        loaded_bytes=loaded,
        peak_bytes=peak_memory_bytes(),
        prefill_s=run.prefill_s,
        decode_s=sorted(run.decode_s)[len(run.decode_s) // 2],
    )


def _warm_up(dtype: torch.dtype) -> None:
    """Run a tiny model, so that libraries and kernels are in memory before anything is counted."""
    config = preset("tiny")
    model = Subject(name="", config=config, source="", directory=None, dtype=dtype).load()
    request(engine_for(model, 32, 2), random_prompt(config, 32), 2)


def main(arguments: list[str]) -> None:
    """What `measure_memory` starts."""
    name, dtype, length, decode_tokens, threads, *caches = arguments
    torch.set_num_threads(int(threads))
    run = run_here(
        Subject.find(name, dtype, *(None if cache == "-" else cache for cache in caches)),
        int(length), int(decode_tokens),
        lambda done, total: print("progress", done, total, flush=True),
    )  # fmt: skip
    print("result", json.dumps(asdict(run)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
