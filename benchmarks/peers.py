"""The same random checkpoint through indexshare, transformers and llama.cpp: reading, writing and memory, by context.

    python benchmarks/peers.py --output result.json --plot result.png

Every measurement is a process of its own and contenders take turns. First comes the gate: logits of all three must
agree, or nothing is timed. Every finished measurement is one line in WORK/measurements.jsonl; started again, the
program goes on from there, and measures again whatever has changed (sources, versions, settings, processor). Delete a
line, or the file, to measure it again. llama.cpp is measured with every combination of its settings given; tables show
the fastest one for each figure. Length 0 is decoding alone, after one token. With `--weights int8` our matrices are
int8 and llama.cpp's Q8_0, with `--weights int4` int4 and Q4_0; transformers takes no part.
"""

import argparse
import hashlib
import importlib.util
import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from common import HERE, ChildFailed, installed, machine, run_child
from contenders import GGUF_NAMES, INSTALL, PACKAGES, PROGRAMS, TAKES_PACKED, WEIGHTS, Variant
from peers_plot import draw
from peers_report import build_report, table

WORKER = HERE / "contenders.py"
DTYPE_ROUNDING = 2.0**-8  # relative, of bfloat16
GATE_TOKENS = 768  # more than index_topk of s.json
# In float32 indexshare and transformers differ by the order of sums; but random weights score keys nearly alike, so a
# few selections and routes hang on that: this share of rows may differ visibly.
GATE_DIFFERENCE = 1e-3
GATE_SHARE_OF_ROWS = 0.02
# llama.cpp computes with rounded weights and activations. It may lie this many times as far from indexshare in float32
# as indexshare with its own rounding does (bfloat16, and weights of as many bits where those are compared), median over
# rows of the root mean square over that of the logits; never this far.
GATE_TIMES_OWN = 2.0
GATE_FARTHEST = 0.5


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add, cores = parser.add_argument, os.cpu_count() or 1
    add("--lengths", type=int, nargs="+", default=[0, 2048, 8192, 32768], help="prompt lengths, and depths to write at")
    add("--repeats", type=int, default=3, help="most measurements of each contender at each length")
    add("--budget", type=float, default=300.0, help="seconds after which a contender at a length is not run again")
    add("--decode-tokens", type=int, default=16, help="tokens written at each depth")
    add("--threads", type=int, default=cores, help="CPU threads of indexshare and transformers")
    add("--llama-threads", type=int, nargs="+", default=[cores], help="CPU threads of llama.cpp, each tried")
    add("--llama-batches", type=int, nargs="+", default=[512], help="llama.cpp's n_ubatch, each tried")
    add("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="who takes part")
    add("--weights", choices=WEIGHTS, default="bf16", help="how all programs keep their matrices")
    add("--transformers-up-to", type=int, default=16384, help="longest prompt of transformers: its memory grows with"
        " the square of the length, 19 GB at 16,384 tokens of s.json")  # fmt: skip
    add("--config", type=Path, default=HERE / "s.json", help="a public config.json")
    add("--work", type=Path, default=Path("runs/peers"), help="folder for checkpoint and measurements, kept")
    add("--output", type=Path, help="write everything as JSON")
    add("--plot", type=Path, help="draw time against context (needs the extra `plots`)")
    arguments = parser.parse_args(argv)
    if min(arguments.repeats, arguments.decode_tokens, arguments.threads) < 1 or min(arguments.lengths) < 0:
        parser.error("repeats, decode tokens and threads are at least 1, lengths at least 0")
    arguments.lengths = sorted(set(arguments.lengths))
    return arguments


def absent_programs(wanted: list[str]) -> dict[str, str]:
    """Those of the programs that are not installed, with the command that would."""
    modules = {"indexshare": "indexshare", "transformers": "transformers", "llama.cpp": "llama_cpp"}
    return {name: INSTALL[name] for name in wanted if importlib.util.find_spec(modules[name]) is None}


def variants(arguments: argparse.Namespace, programs: list[str]) -> list[Variant]:
    """Every program with every setting to try."""
    weights = arguments.weights
    others = [name for name in programs if name != "llama.cpp"]
    found = [Variant(program=name, threads=arguments.threads, weights=weights) for name in others]
    if "llama.cpp" in programs:
        settings = itertools.product(arguments.llama_threads, (True, False), arguments.llama_batches)
        found += [
            Variant(program="llama.cpp", threads=threads, flash=flash, batch=batch, weights=weights)
            for threads, flash, batch in settings
        ]
    return found


def digest(*paths: Path) -> str:
    """Of the contents of files, and of sources below folders."""
    found = hashlib.sha256()
    for path in paths:
        files = [path] if path.is_file() else [f for f in path.rglob("*") if f.suffix in (".py", ".cpp", ".hpp")]
        for file in sorted(files):
            found.update(file.read_bytes())
    return found.hexdigest()[:16]


class Measurements:
    """The file of finished measurements: one JSON object in a line, found again by what was measured."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, dict[str, Any]] = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # the line that was being written when the power went
                continue
            self._known[_key(record["identity"])] = record

    def find(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The record of this measurement if it was ever finished."""
        return self._known.get(_key(identity))

    def add(self, identity: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Write a record, on disk when this returns."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"identity": identity, "at": now, "load_average": round(os.getloadavg()[0], 2), **facts}
        torn = self._file.is_file() and not self._file.read_bytes().endswith(b"\n") and self._file.stat().st_size > 0
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(("\n" if torn else "") + json.dumps(record) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self._known[_key(identity)] = record
        return record


def _key(identity: dict[str, Any]) -> str:
    return json.dumps(identity, sort_keys=True)


class Comparison:
    """One start of the program: its arguments, who takes part, and what is known already."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        wanted = [name for name in arguments.programs if arguments.weights == "bf16" or name in TAKES_PACKED]
        self.absent = absent_programs(wanted)
        self.programs = [name for name in wanted if name not in self.absent]
        self.variants = variants(arguments, self.programs)
        self.machine = machine("torch", *[PACKAGES[name] for name in PROGRAMS[1:]])
        arguments.work.mkdir(parents=True, exist_ok=True)
        self.measurements = Measurements(arguments.work / "measurements.jsonl")
        self._sources = digest(HERE.parent / "indexshare")
        self._config = digest(arguments.config)
        self.folder = arguments.work / f"checkpoint-{self._config}"

    def identity(self, variant: Variant, length: int, turn: int) -> dict[str, Any]:
        """Everything a measurement depends on, but for the state of the machine."""
        ours = variant.program == "indexshare"
        package = PACKAGES[variant.program]
        return asdict(variant) | {
            "length": length,
            "decode_tokens": self.arguments.decode_tokens,
            "turn": turn,
            "config": self._config,
            "version": self._sources if ours else installed(package)[package],
            "torch": None if variant.program == "llama.cpp" else installed("torch")["torch"],
            "processor": self.machine["processor"],
        }

    def child(self, job: str, program: str, **settings: Any) -> dict[str, Any]:
        """Have `contenders.py` do a job."""
        facts = {"job": job, "program": program, "folder": str(self.folder), "decode_tokens": 1} | settings
        return run_child(WORKER, [json.dumps(facts)], facts["threads"])

    def build(self) -> None:
        """The checkpoint, and its GGUF file if llama.cpp takes part; both once."""
        if not self.folder.is_dir():
            say("building the checkpoint")
            self.child("build", "", config=str(self.arguments.config), threads=self.arguments.threads)
        weights = self.arguments.weights
        if "llama.cpp" in self.programs and not (self.folder / GGUF_NAMES[weights]).is_file():
            say("converting it for llama.cpp")
            self.child("convert", "", weights=weights, threads=self.arguments.threads)

    def gate(self) -> dict[str, Any]:
        """Logits of everybody on the same tokens, and whether they agree."""
        one = {"length": GATE_TOKENS}
        plain = {"program": "indexshare", "threads": self.arguments.threads, "weights": "bf16"}
        wanted: dict[str, dict[str, Any]] = {
            "indexshare": plain | {"dtype": "float32"},
            "indexshare bfloat16": plain | {"dtype": "bfloat16"},
        }
        weights = self.arguments.weights
        if weights != "bf16":
            wanted[f"indexshare {weights}"] = plain | {"dtype": "bfloat16", "weights": weights}
        if "transformers" in self.programs:
            wanted["transformers"] = plain | {"program": "transformers", "dtype": "float32"}
        for variant in self.variants:
            if variant.program == "llama.cpp":
                wanted[variant.label] = asdict(variant)
        logits = {}
        for name, settings in wanted.items():
            say(f"gate: {name}")
            file = self.arguments.work / "gate.npy"
            self.child("gate", logits=str(file), **one, **settings)
            logits[name] = np.load(file)
            file.unlink()
        return compare(logits)

    def measure(self) -> Iterator[dict[str, Any]]:
        """Records of all measurements, contenders in turn; those that are known are not repeated."""
        for length in self.arguments.lengths:
            spent: dict[Variant, float] = {}
            for turn in range(self.arguments.repeats):
                for variant in self.variants:
                    too_long = variant.program == "transformers" and length > self.arguments.transformers_up_to
                    if too_long or spent.get(variant, 0.0) >= self.arguments.budget:
                        continue
                    record = self.one(variant, length, turn)
                    spent[variant] = spent.get(variant, 0.0) + seconds_of(record, self.arguments.budget)
                    yield record

    def one(self, variant: Variant, length: int, turn: int) -> dict[str, Any]:
        """A measurement, from the file if it is there."""
        identity = self.identity(variant, length, turn)
        record = self.measurements.find(identity)
        known = record is not None
        if record is None:
            say(f"{datetime.now():%H:%M:%S} {length:,} tokens, {variant.label}, run {turn + 1} ...")
            settings = {"length": length, "decode_tokens": self.arguments.decode_tokens}
            try:
                facts = {"result": self.child("run", **asdict(variant), **settings)}
            except ChildFailed as error:
                facts = {"failure": str(error)}
            record = self.measurements.add(identity, facts)
        say(f"{length:,} tokens, {variant.label}, run {turn + 1}: {outcome(record)}{' (known)' if known else ''}")
        return record


def compare(logits: dict[str, np.ndarray]) -> dict[str, Any]:
    """How far every contender is from indexshare in float32, in the measure and within the bound that suit it."""
    ours = logits["indexshare"]
    scale = float(np.sqrt(np.mean(ours**2)))

    def relative(name: str) -> float:
        return float(np.median(np.sqrt(np.mean((logits[name] - ours) ** 2, axis=-1)))) / scale

    rounded = {name: relative(name) for name in logits if name.startswith("indexshare ")}
    own = max(*rounded.values(), DTYPE_ROUNDING)
    checks: list[dict[str, Any]] = []
    for name, theirs in logits.items():
        if name == "transformers":
            rows = np.abs(theirs - ours).max(-1)
            bounds = [
                ("median of the rows' largest difference", float(np.median(rows)), GATE_DIFFERENCE / 10),
                ("share of rows beyond rounding", float((rows > GATE_DIFFERENCE).mean()), GATE_SHARE_OF_ROWS),
            ]
        elif name.startswith("llama.cpp"):
            bounds = [("median relative error of rows", relative(name), min(GATE_TIMES_OWN * own, GATE_FARTHEST))]
        else:
            continue
        checks += [{"contender": name, "what": what, "value": value, "bound": bound} for what, value, bound in bounds]
    # Written so that NaN does not pass.
    return {
        "tokens": len(ours),
        "relative_errors": rounded,
        "checks": checks,
        "passed": all(error <= GATE_FARTHEST for error in rounded.values())
        and all(check["value"] <= check["bound"] for check in checks),
    }


def seconds_of(record: dict[str, Any], failed: float) -> float:
    """What a measurement took; one that failed is not tried again."""
    if "result" not in record:
        return failed
    return record["result"]["prefill_s"] + sum(record["result"]["decode_s"])


def outcome(record: dict[str, Any]) -> str:
    """One line for people."""
    if "result" not in record:
        return record["failure"]
    result = record["result"]
    decode = 1000 * sorted(result["decode_s"])[len(result["decode_s"]) // 2]
    return f"prefill {result['prefill_s']:.3f} s, decode {decode:.2f} ms, peak {result['peak_bytes'] / 1e9:.2f} GB"


def say(text: str) -> None:
    """Progress goes to standard error."""
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Gate, measure, report; exit status 1 when the gate fails."""
    arguments = parse(argv)
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        say("--plot needs matplotlib: pip install 'indexshare[plots]'")
        return 2
    comparison = Comparison(arguments)
    for name, command in comparison.absent.items():
        say(f"{name} is absent and left out; to have it: {command}")
    try:
        comparison.build()
        gate = comparison.gate()
    except ChildFailed as error:
        say(f"the last process {error}; what it said is above, and nothing was timed")
        return 1
    say(f"gate: {json.dumps(gate, indent=1)}")
    if not gate["passed"]:
        say("the contenders disagree; nothing was timed")
        return 1
    records = list(comparison.measure())
    command = shlex.join(["python", "benchmarks/peers.py", *(sys.argv[1:] if argv is None else argv)])
    about = {"command": command, "machine": comparison.machine, "absent": comparison.absent, "gate": gate}
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(arguments).items()}
    report = build_report(records, about | {"settings": settings})
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        draw(report, arguments.plot)
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
