"""Training speed against transformers on the same weights and the same batch, in one run.

    python benchmarks/train_speed.py --repeats 5 --output result.json

13 layers (1 dense), hidden 256, 16 experts of width 192 of which a token uses two, vocabulary 8,192, full attention,
bfloat16, 8 rows of 1,024 tokens: forward, backward, clipping and one AdamW update. Every measurement is a process of
its own and contenders alternate (A B A B). First comes the gate: in float32 at a small size both must give the same
loss and the same gradient norm from the same files, or nothing is timed. Ours is the training loop's own update
(float32 masters, micro-batches side by side); transformers runs the whole batch at once with torch's fused AdamW.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import machine, quiet_transformers, run_child

CONTENDERS = ("indexshare", "transformers")
LENGTH = 1024
SIZES: dict[str, Any] = {
    "vocab_size": 8192, "hidden_size": 256, "intermediate_size": 768, "moe_intermediate_size": 192,
    "num_hidden_layers": 13, "num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 16,
    "num_experts_per_tok": 2, "n_shared_experts": 1, "q_lora_rank": 128, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32, "v_head_dim": 64, "index_n_heads": 4, "index_head_dim": 32, "index_topk": 32768,
    "mlp_layer_types": ["dense"] + ["sparse"] * 12, "index_topk_freq": 4, "index_skip_topk_offset": 3,
    "rope_parameters": {"rope_theta": 8e6, "rope_type": "default"}, "max_position_embeddings": 32768,
    "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0, "dtype": "float32",
}  # fmt: skip
RATE, CLIP = 1e-4, 1.0
GATE_ROWS, GATE_LENGTH = 2, 96
GATE_RELATIVE = 1e-4  # of loss and gradient norm; both sides sum in float32 in their own order

Update = Callable[[], tuple[float, float]]


def build_checkpoint(folder: Path) -> None:
    """Random float32 weights, made and saved by transformers."""
    import torch

    transformers = quiet_transformers()
    torch.manual_seed(0)
    transformers.GlmMoeDsaForCausalLM(transformers.GlmMoeDsaConfig(**SIZES)).save_pretrained(folder)


def batch_of(rows: int, length: int) -> Any:
    """The same random tokens for everybody, int64 [rows, length + 1]."""
    import torch

    return torch.randint(1, SIZES["vocab_size"], (rows, length + 1), generator=torch.Generator().manual_seed(1))


def our_update(folder: Path, dtype: Any, batch: Any, arguments: argparse.Namespace) -> Update:
    """One update as `indexshare.train.loop` makes it; returns loss and gradient norm."""
    import torch

    from indexshare import load_model
    from indexshare.data.batch import Batch
    from indexshare.train.objectives import Balance, NextToken
    from indexshare.train.optim import MixedOptimizer, OptimConfig
    from indexshare.train.stages import pretrain
    from indexshare.train.steps import train_batch
    from indexshare.train.workers import Workers

    model = load_model(folder, dtype=dtype).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    rows, length = batch.shape[0], batch.shape[1] - 1
    shape = {"tokens": rows * length, "sequence_length": length, "batch_tokens": rows * length}
    objectives = (NextToken(), Balance(rate=0.0))
    stage = pretrain(**shape, micro_tokens=arguments.micro_tokens, objectives=objectives)
    rates = {"muon_lr": 0.0, "adam_lr": RATE, "router_lr": RATE, "weight_decay": 0.01}
    optimizer = MixedOptimizer(model, model.config, OptimConfig(**rates, betas=(0.9, 0.999), clip_norm=CLIP))
    workers = Workers(arguments.threads)
    if arguments.threads > 1:
        torch.set_num_threads(1)

    def update() -> tuple[float, float]:
        metrics = train_batch(model, optimizer, stage, Batch(tokens=batch), 0, workers) | optimizer.clip()
        optimizer.step(1.0)
        return metrics["loss"], metrics["grad_norm"]

    return update


def public_update(folder: Path, dtype: Any, batch: Any, arguments: argparse.Namespace) -> Update:
    """The same with transformers: its model and loss, torch's clipping and fused AdamW."""
    import torch

    transformers = quiet_transformers()
    options = {"dtype": dtype, "attn_implementation": "sdpa"}
    if arguments.peer_experts != "default":
        options["experts_implementation"] = arguments.peer_experts
    model = transformers.GlmMoeDsaForCausalLM.from_pretrained(folder, **options).train()
    parameters = [p for name, p in model.named_parameters() if ".indexer." not in name]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01, fused=True)
    targets = batch[:, 1:].contiguous()

    def update() -> tuple[float, float]:
        loss = model(input_ids=batch[:, :-1], labels=targets, shift_labels=targets, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item(), norm.item()

    return update


def worker(arguments: argparse.Namespace) -> None:
    """Runs in the child process: one measurement, one JSON line on standard output."""
    import torch

    from indexshare.planner.machine import peak_memory_bytes

    torch.set_num_threads(arguments.threads)
    folder = Path(arguments.checkpoint)
    if arguments.worker == "build":
        build_checkpoint(folder)
        print("{}")
        return
    make = our_update if arguments.worker == "indexshare" else public_update
    update = make(folder, getattr(torch, arguments.dtype), batch_of(arguments.rows, arguments.length), arguments)
    loss, norm = update()
    seconds = []
    for i in range(arguments.warmup - 1 + arguments.updates):
        started = time.perf_counter()
        update()
        if i >= arguments.warmup - 1:
            seconds.append(time.perf_counter() - started)
    print(json.dumps({"loss": loss, "grad_norm": norm, "seconds": seconds, "peak_bytes": peak_memory_bytes()}))


def child(arguments: argparse.Namespace, job: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """Run `worker` in a fresh process and return its result; its errors go to the terminal."""
    keys = ("rows", "length", "updates", "warmup", "threads", "micro_tokens", "peer_experts", "dtype")
    settings = {key: getattr(arguments, key) for key in keys} | changes
    command = ["--worker", job, "--checkpoint", str(folder)]
    for key, value in settings.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    return run_child(Path(__file__).resolve(), command, arguments.threads)


def run_gate(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Loss and gradient norm of both in float32 on a small batch."""
    small = {"rows": GATE_ROWS, "length": GATE_LENGTH, "dtype": "float32", "updates": 0, "warmup": 1}
    results = {name: child(arguments, name, folder, **small) for name in CONTENDERS}
    gate: dict[str, Any] = {"tokens": GATE_ROWS * GATE_LENGTH}
    for key in ("loss", "grad_norm"):
        ours, theirs = (results[name][key] for name in CONTENDERS)
        gate[key] = {"indexshare": ours, "transformers": theirs, "relative": abs(ours - theirs) / theirs}
    gate["passed"] = max(gate["loss"]["relative"], gate["grad_norm"]["relative"]) < GATE_RELATIVE
    return gate


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All repeats, contenders in turn; medians over all timed updates and their range."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    tokens = arguments.rows * arguments.length
    for _ in range(arguments.repeats):
        for name in CONTENDERS:
            run = child(arguments, name, folder)
            runs[name].append(run)
            shown = " ".join(f"{tokens / s:,.0f}" for s in run["seconds"])
            print(f"{name:<13} tokens/s {shown}   peak {run['peak_bytes'] / 1e9:.2f} GB", file=sys.stderr)
    result: dict[str, Any] = {"runs": runs}
    for name in CONTENDERS:
        speeds = sorted(tokens / s for run in runs[name] for s in run["seconds"])
        result[name] = {
            "tokens_per_second": {"median": statistics.median(speeds), "low": speeds[0], "high": speeds[-1]},
            "peak_bytes": statistics.median(run["peak_bytes"] for run in runs[name]),
            "first_loss": runs[name][0]["loss"],
        }
    ours, theirs = (result[name]["tokens_per_second"]["median"] for name in CONTENDERS)
    result["ratio"] = ours / theirs
    return result


def table(result: dict[str, Any]) -> str:
    """Markdown: median (range) of both, and the ratio of the medians."""
    rows = ["| | tokens/s, median (range) | peak GB | first loss |", "|---|---|---|---|"]
    for name in CONTENDERS:
        one, speed = result[name], result[name]["tokens_per_second"]
        spread = f"{speed['median']:,.0f} ({speed['low']:,.0f}-{speed['high']:,.0f})"
        rows.append(f"| {name} | {spread} | {one['peak_bytes'] / 1e9:.2f} | {one['first_loss']:.4f} |")
    rows.append(f"| ratio | {result['ratio']:.2f}x | | |")
    return "\n".join(rows)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=8, help="rows of the batch")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens per row")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each contender")
    parser.add_argument("--updates", type=int, default=3, help="timed updates in each process")
    parser.add_argument("--warmup", type=int, default=2, help="updates before the timed ones")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each process")
    parser.add_argument("--micro-tokens", type=int, default=2 * LENGTH, help="ours: most tokens in a forward pass")
    parser.add_argument("--peer-experts", default="default", help="transformers: experts_implementation")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16", help="of the models")
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=["build", *CONTENDERS], help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if not arguments.worker and min(arguments.rows, arguments.length, arguments.repeats, arguments.updates) < 1:
        parser.error("rows, length, repeats and updates are at least 1")
    if arguments.warmup < 1:
        parser.error("warmup is at least 1: the first update compiles kernels")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Gate, measure, report; exit status 1 when the gate fails."""
    arguments = parse(argv)
    if arguments.worker:
        worker(arguments)
        return 0
    about = machine("torch", "transformers")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        child(arguments, "build", folder)
        gate = run_gate(arguments, folder)
        print(f"gate: {json.dumps(gate)}", file=sys.stderr)
        if not gate["passed"]:
            print("the two sides disagree; nothing was timed", file=sys.stderr)
            return 1
        result = measure(arguments, folder)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": SIZES,
        "settings": {
            key: value for key, value in vars(arguments).items() if key not in ("output", "worker", "checkpoint")
        },
        "machine": about,
        "gate": gate,
        "result": result,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
