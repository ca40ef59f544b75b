"""Speed with the cache in each type: tokens written at a depth, and prompts read, in turn in one process.

    python benchmarks/cache_speed.py --decode 131072 --prefill 8192 32768

Weights are random. For decoding, the cache is filled with random rows, since reading 131,072 tokens takes minutes; a
step does the same work on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from indexshare.cache.codecs import codecs_by_stream
from indexshare.cache.paged import PagedCache
from indexshare.measure.runs import engine_for, random_prompt, request
from indexshare.measure.subject import Subject
from indexshare.measure.timing import interleave
from indexshare.model.glm import GlmMoeDsa
from indexshare.step.native_step import NativeStep

BLOCK = 64
Caches = tuple[str | None, str | None]


def decode_job(model: GlmMoeDsa, caches: Caches, depth: int, steps: int) -> Callable[[], float]:
    """Seconds of a token at a depth."""
    config, dtype = model.config, model.embed_tokens.weight.dtype
    blocks = depth // BLOCK + 2
    cache = PagedCache(config, blocks, BLOCK, dtype, codecs=codecs_by_stream(config, *caches))
    generator = torch.Generator().manual_seed(0)
    for pool in cache.pools.values():
        for start in range(0, depth, 8192):
            slots = torch.arange(start, min(start + 8192, depth))
            pool.write(slots, torch.randn(len(slots), pool.codec.stream.width, generator=generator).to(dtype))
    step, table = NativeStep(model), list(range(blocks))

    def job() -> float:
        times = []
        with torch.inference_mode():
            for at in range(steps):
                view = cache.view([table], [(depth + at, 1)])
                assert step.refusal(view) is None, step.refusal(view)
                start = time.perf_counter()
                step([at], view)
                times.append(time.perf_counter() - start)
        return statistics.median(times)

    return job


def prefill_job(model: GlmMoeDsa, caches: Caches, length: int) -> Callable[[], float]:
    """Seconds to read a prompt."""
    llm, prompt = engine_for(model, length, 1, caches=caches), random_prompt(model.config, length)
    return lambda: request(llm, prompt, 1).prefill_s


def named(text: str) -> Caches:
    """`int8`, `int8/bfloat16` (everything, index keys), or `-` for as it is computed."""
    everything, _, keys = text.partition("/")
    return None if everything == "-" else everything, keys or None


def main() -> None:
    """Print one JSON object: medians and all times, by what was done and cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="benchmarks/s.json")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--caches", nargs="+", default=["-", "bfloat16", "int8", "fp8"])
    parser.add_argument("--decode", type=int, nargs="*", default=[])
    parser.add_argument("--prefill", type=int, nargs="*", default=[])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    subject = Subject.find(arguments.model, arguments.dtype)
    model = subject.load()
    found = {}
    for kind, lengths in (("decode", arguments.decode), ("prefill", arguments.prefill)):
        for length in lengths:
            jobs = {
                text: decode_job(model, named(text), length, arguments.steps)
                if kind == "decode"
                else prefill_job(model, named(text), length)
                for text in arguments.caches
            }
            runs = interleave(jobs, arguments.repeats)
            found[f"{kind} {length}"] = {
                text: {"median_s": statistics.median(times), "all_s": times} for text, times in runs.items()
            }
            print(json.dumps({f"{kind} {length}": found[f"{kind} {length}"]}), flush=True)


if __name__ == "__main__":
    main()
