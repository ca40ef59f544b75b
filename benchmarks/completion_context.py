"""Names that `indexshare complete` can only know from far away, completed with a long context and with a short one.

    python benchmarks/completion_context.py --model nano

Takes held-out files and finds the uses of names whose last mention is out of the short context's reach, and the first
uses of names that another file of the package defines (`indexshare/eval/identifiers.py`). Prints how many of them
greedy decoding completes exactly and what they cost in bits, under both contexts, with 95 % intervals over files; then
examples: exact completions that the long context saves most bits on, and failures that it helps least or harms, each
with what the model writes. With --json the figures and every use go to a file. Progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import indexshare
from indexshare.checkpoint.load import load_model
from indexshare.config.shipped import model_directory
from indexshare.data.corpus import TextFolder, read_folder
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.eval.bootstrap import Estimate
from indexshare.eval.held_out import held_out_split, package_split, training_text
from indexshare.eval.identifiers import CompletedUse, complete_identifiers, summarise
from indexshare.text.tokenizer import Tokenizer

SHOWN_BEFORE = 5  # lines of the file in an example


def text_of(figure: Estimate, form: str) -> str:
    """A figure with its interval."""
    ends = "" if figure.interval is None else " ({:{f}} to {:{f}})".format(*figure.interval, f=form)
    return f"{figure.value:{form}}{ends}"


def print_figures(uses: Sequence[CompletedUse], long: int, short: int) -> None:
    """One block per kind of use."""
    for kind, figures in summarise(uses).items():
        print(f"{kind}: {figures.uses} names, {figures.visible} of them in the long context")
        rows = (
            ("completed exactly", figures.accuracy, figures.accuracy_gain, ".1%"),
            ("bits per name", figures.bits, figures.bits_saved, ".2f"),
        )
        for name, (with_long, with_short), gain, form in rows:
            change = f"{text_of(gain, form)} {'more' if '%' in form else 'saved'}"
            print(
                f"  {name}: {long:,} tokens {text_of(with_long, form)}; {short:,} {text_of(with_short, form)}; {change}"
            )


def choose_examples(uses: Sequence[CompletedUse], count: int) -> list[tuple[str, CompletedUse]]:
    """The best and the worst by bits saved, at most one of each per file; only exact completions are good."""
    order = sorted(uses, key=lambda use: use.bits[1] - use.bits[0], reverse=True)
    exact = [use for use in order if use.right[0] and not use.right[1]]
    wrong = [use for use in reversed(order) if not use.right[0]]
    chosen: list[tuple[str, CompletedUse]] = []
    for label, candidates in (("good", exact), ("bad", wrong)):
        by_file: dict[str, CompletedUse] = {}
        for use in candidates:
            by_file.setdefault(use.file, use)
        chosen += [(label, use) for use in list(by_file.values())[:count]]
    return chosen


def print_example(label: str, use: CompletedUse, tokenizer: Tokenizer, llm: LLM) -> None:
    """The lines before the name, how the line goes on, and what the model writes under both contexts."""
    params = SamplingParams(max_tokens=24, temperature=0.0, stop=("\n",))
    written = [llm.generate([prompt], params)[0].text for prompt in use.prompts]
    print(f"\n[{label}] {use.file}:{use.line}, {use.name!r} defined in {use.defined_in}")
    before = tokenizer.decode(use.prompts[1]).split("\n")[-SHOWN_BEFORE:]
    print("\n".join(f"    | {line}" for line in before))
    names = ("the file goes on", *(f"{len(prompt):,} tokens" for prompt in use.prompts))
    for name, text in zip(names, (use.ahead, *written), strict=True):
        print(f"    {name:>18}: {text}")
    print(
        f"    {'bits of the name':>18}: {use.bits[0]:.1f} with the long context, {use.bits[1]:.1f} with the short one"
    )


def facts_of(uses: Sequence[CompletedUse], arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures and uses as plain values, with what they were measured on."""
    versions = {"indexshare": indexshare.__version__, "torch": torch.__version__, "python": platform.python_version()}
    asked = {key: getattr(arguments, key) for key in ("model", "long", "short", "files", "uses_per_file", "seed")}
    plain = [{key: value for key, value in asdict(use).items() if key != "prompts"} for use in uses]
    kinds = {kind: asdict(figures) for kind, figures in summarise(uses).items()}
    return {"versions": versions, "arguments": asked, "kinds": kinds, "uses": plain}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--text", type=Path, help="a folder instead of the model's own held-out files")
    parser.add_argument("--packages", default="", help="installed packages that the model has not seen: a,b,c")
    parser.add_argument("--long", type=int, default=16_384)
    parser.add_argument("--short", type=int, default=1024)
    parser.add_argument("--files", type=int, default=24)
    parser.add_argument("--uses-per-file", type=int, default=12)
    parser.add_argument("--examples", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Measure, then print figures and examples."""
    arguments = parse()
    directory = model_directory(arguments.model)
    if arguments.text is not None:
        held_out = everything = read_folder(TextFolder(path=str(arguments.text))).documents
    else:
        packages = [name for name in arguments.packages.split(",") if name]
        split = package_split(directory, packages) if packages else held_out_split(training_text(directory))
        held_out, everything = split.held_out, [*split.train, *split.held_out]
    model = load_model(arguments.model, dtype=arguments.dtype, device=arguments.device)
    tokenizer = Tokenizer.load(directory)
    uses = complete_identifiers(
        model,
        tokenizer,
        held_out,
        everything,
        long=arguments.long,
        short=arguments.short,
        files=arguments.files,
        uses_per_file=arguments.uses_per_file,
        seed=arguments.seed,
        progress=lambda done, total: print(f"file {done} of at most {total}", file=sys.stderr, flush=True),
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(facts_of(uses, arguments), indent=2) + "\n", encoding="utf-8")
    print_figures(uses, arguments.long, arguments.short)
    llm = LLM(model, tokenizer=tokenizer, cache_tokens=arguments.long + 64)
    for label, use in choose_examples(uses, arguments.examples):
        print_example(label, use, tokenizer, llm)


if __name__ == "__main__":
    main()
