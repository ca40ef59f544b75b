"""Time of a token while another program keeps one core busy: one thread and several, free and loaded, in turn.

    python benchmarks/busy_core.py --models nano benchmarks/s.json --depth 2048

A process that does nothing but count is stopped and let go again for every measurement. What a lost core explains is
the time of one thread less; `ratio` is that of all threads beside the busy core to one thread with a core of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

from indexshare.engine.llm import LLM
from indexshare.measure.runs import engine_for, random_prompt, request
from indexshare.measure.subject import Subject
from indexshare.measure.timing import interleave

SETTLE_S = 0.2  # for the system to find a core for everybody


class BusyCore:
    """A process that counts, whenever it is let go."""

    def __enter__(self) -> BusyCore:
        self._process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        os.kill(self._process.pid, signal.SIGSTOP)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @contextmanager
    def running(self, wanted: bool) -> Iterator[None]:
        """Let it run, if that is wanted."""
        os.kill(self._process.pid, signal.SIGCONT if wanted else signal.SIGSTOP)
        time.sleep(SETTLE_S)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGSTOP)


def decode_s(llm: LLM, prompt: list[int], tokens: int, busy: BusyCore, threads: int, loaded: bool) -> float:
    """Mean seconds of a token behind a prompt: a stall of some milliseconds counts."""
    torch.set_num_threads(threads)
    times = []
    with busy.running(loaded):
        times = request(llm, prompt, tokens).decode_s
    return statistics.fmean(times)


def main() -> None:
    """Print one JSON object for each model: medians of a token's milliseconds, all of them, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["nano", "benchmarks/s.json"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--depth", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with BusyCore() as busy:
        for name in arguments.models:
            model = Subject.find(name, arguments.dtype).load()
            llm = engine_for(model, arguments.depth, arguments.tokens)
            prompt = random_prompt(model.config, arguments.depth)
            jobs: dict[str, Callable[[], float]] = {
                f"{threads} {'loaded' if loaded else 'free'}": partial(
                    decode_s, llm, prompt, arguments.tokens, busy, threads, loaded
                )
                for threads in (1, arguments.threads)
                for loaded in (False, True)
            }
            runs = interleave(jobs, arguments.repeats)
            median = {job: 1e3 * statistics.median(times) for job, times in runs.items()}
            ratio = median[f"{arguments.threads} loaded"] / median["1 free"]
            all_ms = {job: [1e3 * each for each in times] for job, times in runs.items()}
            print(json.dumps({"model": name, "median_ms": median, "ratio": ratio, "all_ms": all_ms}), flush=True)


if __name__ == "__main__":
    main()
