"""Peak memory of a long prefill above the loaded model, one process per length.

    python benchmarks/prefill_memory.py --model nano --lengths 8192 16384 32768

Prints one JSON object: per length the resident memory once the model is loaded, the peak while prefilling and
decoding a few tokens, the cache's bytes, and the seconds; with the versions that were measured. A model that is only
a preset (no weights shipped) is measured with random weights: memory does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch

import indexshare
from indexshare.config import preset
from indexshare.config.shipped import shipped_models
from indexshare.engine.llm import LLM
from indexshare.engine.request import SamplingParams
from indexshare.model.glm import GlmMoeDsa
from indexshare.model.weights import load_model
from indexshare.planner.memory import cache_bytes_per_token


def status_bytes(field: str) -> int:
    """A memory field of this process in bytes, from /proc (`VmRSS`, or `VmHWM` for the peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def measure(name: str, length: int, dtype: str) -> dict[str, float]:
    """One prefill of `length` random tokens and eight decoded ones, in this process."""
    if name in shipped_models() or Path(name).is_dir():
        model = load_model(name, dtype=dtype)
    else:
        model = GlmMoeDsa(preset(name)).initialise(0).to(getattr(torch, dtype)).eval()
    warm = LLM(model, cache_tokens=1024, max_context=1024)
    warm.generate([[1, 2, 3]], SamplingParams(max_tokens=2, ignore_eos=True))
    loaded = status_bytes("VmRSS")
    ids = torch.randint(0, model.config.vocab_size, (length - 8,)).tolist()
    engine = LLM(model, cache_tokens=length + 64)
    started = time.perf_counter()
    (output,) = engine.generate([ids], SamplingParams(max_tokens=8, ignore_eos=True, temperature=0.0))
    cache = length * cache_bytes_per_token(model.config, torch.finfo(getattr(torch, dtype)).bits // 8)
    return {
        "tokens": length,
        "loaded_bytes": loaded,
        "peak_bytes": status_bytes("VmHWM"),
        "above_model_bytes": status_bytes("VmHWM") - loaded,
        "cache_bytes": cache,
        "prefill_s": output.stats.prefill_s,
        "total_s": time.perf_counter() - started,
    }


def main() -> None:
    """Measure every length in a process of its own and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 16384, 32768])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.model, arguments.lengths[0], arguments.dtype)))
        return
    rows = []
    for length in arguments.lengths:
        command = [sys.executable, __file__, "--worker", "--model", arguments.model, "--dtype", arguments.dtype]
        result = subprocess.run([*command, "--lengths", str(length)], check=True, capture_output=True, text=True)
        rows.append(json.loads(result.stdout))
    versions = {"indexshare": indexshare.__version__, "torch": torch.__version__, "python": platform.python_version()}
    facts = {"model": arguments.model, "dtype": arguments.dtype, "versions": versions, "rows": rows}
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
