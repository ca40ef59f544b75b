"""Prefill, decode and memory against transformers (sdpa) on the same random checkpoint, in one run.

    python benchmarks/peers_transformers.py --sizes 2048 8192 --repeats 3 --output result.json

Every measurement is a process of its own, so that peak memory means something; contenders alternate (A B A
B), and medians are reported with the whole range. First comes the correctness gate: without it no speed is
reported. Both sides load the same bfloat16 files, read one random prompt and decode greedily at that depth.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CONTENDERS = ("indexshare", "transformers")
GATE_TOKENS = 768  # more than index_topk of s.json
# Random weights score keys nearly alike, so a few selections and routes hang on rounding: the gate allows
# that many rows to differ visibly, and the others by rounding only.
GATE_DIFFERENCE = 1e-3
GATE_SHARE_OF_ROWS = 0.02


def quiet_transformers() -> Any:
    """The transformers module without progress bars, network or chatter."""
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


def build_checkpoint(config_file: Path, folder: Path) -> None:
    """Random bfloat16 weights (normal, `initializer_range`, seed 0), made and saved by transformers."""
    import torch

    transformers = quiet_transformers()
    config = transformers.GlmMoeDsaConfig(**json.loads(config_file.read_text()))
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    transformers.GlmMoeDsaForCausalLM(config).save_pretrained(folder)


def prompt_ids(vocab_size: int, size: int) -> list[int]:
    """The same random prompt for every contender."""
    import torch

    return torch.randint(1, vocab_size, (size,), generator=torch.Generator().manual_seed(size)).tolist()


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: on Linux a child inherits the maximum of the process that started it.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def run_ours(folder: Path, size: int, decode_tokens: int) -> dict[str, Any]:
    """One request through the engine: times from its own statistics."""
    from indexshare import LLM, SamplingParams

    llm = LLM(folder, dtype="bfloat16", cache_tokens=size + decode_tokens + 64)
    greedy = {"temperature": 0.0, "ignore_eos": True}
    llm.generate([prompt_ids(4096, 64)], SamplingParams(max_tokens=4, **greedy))
    loaded = peak_rss_bytes()
    ids = prompt_ids(llm.model.config.vocab_size, size)
    output = llm.generate([ids], SamplingParams(max_tokens=decode_tokens + 1, **greedy))[0]
    return {
        "prefill_s": output.stats.prefill_s,
        "decode_ms": 1000 * output.stats.decode_s / decode_tokens,
        "loaded_bytes": loaded,
    }


def run_transformers(folder: Path, size: int, decode_tokens: int) -> dict[str, Any]:
    """The same request with the public model, its cache and scaled-dot-product attention."""
    import torch

    transformers = quiet_transformers()
    model = transformers.GlmMoeDsaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")

    @torch.inference_mode()
    def request(ids: list[int], count: int) -> tuple[float, float]:
        cache = transformers.DynamicCache(config=model.config)
        started = time.perf_counter()
        fed = torch.tensor([ids])
        token = model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)
        prefilled = time.perf_counter()
        for _ in range(count):
            token = model(token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)
        return prefilled - started, time.perf_counter() - prefilled

    request(prompt_ids(4096, 64), 4)
    loaded = peak_rss_bytes()
    prefill, decode = request(prompt_ids(model.config.vocab_size, size), decode_tokens)
    return {"prefill_s": prefill, "decode_ms": 1000 * decode / decode_tokens, "loaded_bytes": loaded}


def run_gate(folder: Path) -> dict[str, Any]:
    """Float32 logits of both on the same tokens."""
    import torch

    from indexshare import load_model

    transformers = quiet_transformers()
    options = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    public = transformers.GlmMoeDsaForCausalLM.from_pretrained(folder, **options).eval()
    ids = torch.tensor([prompt_ids(public.config.vocab_size, GATE_TOKENS)])
    with torch.inference_mode():
        expected = public(ids).logits[0]
        got = load_model(folder, dtype="float32")(ids)[0]
    difference = (expected - got).abs().amax(-1)
    return {
        "tokens": GATE_TOKENS,
        "index_topk": public.config.index_topk,
        "logit_std": expected.std().item(),
        "median_difference": difference.median().item(),
        "largest_difference": difference.max().item(),
        "rows_beyond_rounding": int((difference > GATE_DIFFERENCE).sum()),
        "same_greedy_tokens": (expected.argmax(-1) == got.argmax(-1)).float().mean().item(),
    }


def worker(arguments: argparse.Namespace) -> None:
    """Runs in the child process: one measurement, one JSON line on standard output."""
    import torch

    torch.set_num_threads(arguments.threads)
    folder = Path(arguments.checkpoint)
    if arguments.worker == "build":
        build_checkpoint(Path(arguments.config), folder)
        result: dict[str, Any] = {}
    elif arguments.worker == "gate":
        result = run_gate(folder)
    else:
        run = run_ours if arguments.worker == "indexshare" else run_transformers
        result = run(folder, arguments.sizes[0], arguments.decode_tokens)
        result["peak_bytes"] = peak_rss_bytes()
    print(json.dumps(result))


def child(arguments: argparse.Namespace, job: str, folder: Path, size: int = 1) -> dict[str, Any]:
    """Run `worker` in a fresh process and return its result; its errors go to the terminal."""
    command = [
        sys.executable, str(Path(__file__).resolve()), "--worker", job, "--checkpoint", str(folder),
        "--config", str(arguments.config), "--sizes", str(size),
        "--decode-tokens", str(arguments.decode_tokens), "--threads", str(arguments.threads),
    ]  # fmt: skip
    search = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": search, "OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    fields = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(values.get("flags", "").split())
    interesting = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "processor": values.get("model name") or platform.processor(),
        "cores": os.cpu_count(),
        "features": [flag for flag in interesting if flag in flags],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "load_average_at_start": os.getloadavg()[0],
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and range of each figure."""
    result: dict[str, Any] = {"runs": len(runs)}
    for key in ("prefill_s", "decode_ms", "peak_bytes", "loaded_bytes"):
        values = sorted(run[key] for run in runs)
        result[key] = {"median": statistics.median(values), "low": values[0], "high": values[-1]}
    return result


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All sizes, contenders in turn."""
    results = []
    for size in arguments.sizes:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
        wanted = dict(zip(CONTENDERS, (arguments.repeats, arguments.repeats_peer), strict=True))
        for turn in range(max(wanted.values())):
            for name in CONTENDERS:
                if turn < wanted[name]:
                    run = child(arguments, name, folder, size)
                    print(
                        f"{size:>7} {name:<13} prefill {run['prefill_s']:8.2f} s   decode {run['decode_ms']:7.2f} ms"
                        f"   peak {run['peak_bytes'] / 1e9:5.2f} GB",
                        file=sys.stderr,
                    )
                    runs[name].append(run)
        results.append({"size": size, **{name: summary(runs[name]) for name in CONTENDERS}, "runs": runs})
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: median (range) of both, and how many times faster or smaller ours is."""
    columns = (
        ("prefill_s", "prefill s", 1, 2),
        ("decode_ms", "decode ms/token", 1, 2),
        ("peak_bytes", "peak GB", 1e9, 2),
    )
    rows = ["| tokens | figure | indexshare | transformers | ratio |", "|---|---|---|---|---|"]
    for result in results:
        for key, title, unit, digits in columns:
            ours, theirs = (result[name][key] for name in CONTENDERS)
            shown = [
                f"{s['median'] / unit:.{digits}f} ({s['low'] / unit:.{digits}f}-{s['high'] / unit:.{digits}f})"
                for s in (ours, theirs)
            ]
            ratio = theirs["median"] / ours["median"]
            rows.append(f"| {result['size']:,} | {title} | {shown[0]} | {shown[1]} | {ratio:.2f}x |")
    return "\n".join(rows)


def passes(gate: dict[str, Any]) -> bool:
    """Whether the two sides compute the same thing."""
    allowed = GATE_SHARE_OF_ROWS * gate["tokens"]
    return gate["median_difference"] < GATE_DIFFERENCE / 10 and gate["rows_beyond_rounding"] <= allowed


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2048, 8192], help="prompt lengths in tokens")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of indexshare per size")
    parser.add_argument("--repeats-peer", type=int, help="measurements of transformers; default as --repeats")
    parser.add_argument("--decode-tokens", type=int, default=16, help="tokens decoded at the depth of the prompt")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each process")
    parser.add_argument("--config", type=Path, default=HERE / "s.json", help="a public config.json")
    parser.add_argument("--checkpoint", help="folder to keep the checkpoint in; default a temporary one")
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    parser.add_argument("--worker", choices=["build", "gate", *CONTENDERS], help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.repeats_peer is None:
        arguments.repeats_peer = arguments.repeats
    if min(arguments.repeats, arguments.repeats_peer, arguments.decode_tokens, *arguments.sizes) < 1:
        parser.error("sizes, repeats and decode tokens are at least 1")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Gate, measure, report; exit status 1 when the gate fails."""
    arguments = parse(argv)
    if arguments.worker:
        worker(arguments)
        return 0
    about = machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.checkpoint or temporary)
        if not (folder / "config.json").is_file():
            child(arguments, "build", folder)
        gate = child(arguments, "gate", folder)
        print(f"gate: {json.dumps(gate)}", file=sys.stderr)
        if not passes(gate):
            print("the two sides disagree; nothing was timed", file=sys.stderr)
            return 1
        results = measure(arguments, folder)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": {"file": arguments.config.name, "sha256": hashlib.sha256(arguments.config.read_bytes()).hexdigest()},
        "settings": {"threads": arguments.threads, "decode_tokens": arguments.decode_tokens, "dtype": "bfloat16"},
        "machine": about,
        "gate": gate,
        "results": results,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
