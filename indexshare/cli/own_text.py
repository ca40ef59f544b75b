"""`indexshare train --text`: fine-tuning on one's own text, from the plan to the comparison with the model before."""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from indexshare.cli.measuring import MeasuringBar
from indexshare.cli.output import console, note, print_json, print_pairs, print_table, size, write

if TYPE_CHECKING:
    from indexshare.eval.bootstrap import Estimate
    from indexshare.eval.comparison import Comparison
    from indexshare.train.own_text import OwnText, Prepared

_SAID_BY_THE_RUN = ("to train on", "held out", "note")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class OwnTextOptions:
    """Fine-tuning on a text of your own, in place of a recipe.

    Parameters
    ----------
    text
        Folder with your text, or one file. Every UTF-8 file counts but hidden and generated ones, unless --pattern.
    pattern
        Only files that match, such as `*.md` (in any folder) or `docs/*.txt`. May be given several times.
    start
        The model to begin with: nano, pico, or a model directory.
    steps
        Updates to make. Without it and --minutes, four passes over the text or ten minutes, whichever is less.
    minutes
        Time to train, in place of --steps: an update is measured, and the number of updates follows from that.
    rate
        Factor of all learning rates.
    length
        Tokens in a row: 1,024, or less for little text, unless given.
    held_out
        Part of the text that is not trained on, to measure what was learned.
    dry_run
        Say what would be read and how long it would take (one update is measured), and train nothing.
    """

    text: str | None = None
    pattern: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    start: str = "nano"
    steps: int | None = None
    minutes: float | None = None
    rate: float = 1.0
    length: int | None = None
    held_out: float = 0.1
    dry_run: Annotated[bool, Parameter(negative="")] = False

    def asked(self, out: Path | None, seed: int | None) -> OwnText:
        """The same for the trainer, with the run's folder; ValueError when an option is out of range."""
        from indexshare.train.own_text import OwnText

        assert self.text is not None
        asked = OwnText(
            text=self.text, patterns=self.pattern, start=self.start, steps=self.steps, minutes=self.minutes,
            rate=self.rate, length=self.length, held_out=self.held_out, seed=seed or 0,
        )  # fmt: skip
        return replace(asked, out=str(Path("runs") / asked.name if out is None else out))

    def check_unused(self) -> None:
        """Refuse (ValueError) options that mean nothing without `text`."""
        default = OwnTextOptions()
        for name in ("pattern", "start", "steps", "minutes", "rate", "length", "held_out", "dry_run"):
            if getattr(self, name) != getattr(default, name):
                raise ValueError(f"--{name.replace('_', '-')} goes with --text; a recipe says such things itself")

    def command(self) -> list[str]:
        """The options as they would be typed."""
        default, words = OwnTextOptions(), ["--text", str(self.text)]
        for pattern in self.pattern:
            words += ["--pattern", pattern]
        for name in ("start", "steps", "minutes", "rate", "length", "held_out"):
            if getattr(self, name) != getattr(default, name):
                words += [f"--{name.replace('_', '-')}", str(getattr(self, name))]
        return words


def train_on_text(
    options: OwnTextOptions, *, out: Path | None, seed: int | None, device: str, json: bool, **settings: Any
) -> int:
    """Plan, train and compare; returns the exit code (130 when stopped)."""
    from indexshare.checkpoint.lock import folder_lock
    from indexshare.train.loop import run
    from indexshare.train.own_text import prepare_run

    asked = options.asked(out, seed)
    folder = Path("runs") / asked.name if out is None else out
    again = shlex.join(
        ["indexshare", "train", *options.command(), "--out", str(folder)]
        + (["--seed", str(seed)] if seed is not None else [])
        + (["--device", device] if device != "cpu" else [])
    )
    reading = console(stderr=True).status("reading the text, measuring an update")
    if options.dry_run:
        with tempfile.TemporaryDirectory() as nowhere:
            with reading:
                prepared = prepare_run(asked, Path(nowhere), device=device, always_measure=True)
            _show_plan(prepared, folder, json=json)
        return 0
    with folder_lock(folder):
        with reading:
            prepared = prepare_run(asked, folder, device=device)
        if not (json or settings["quiet"]):
            for name, value in _plan_pairs(prepared, folder):
                if name not in _SAID_BY_THE_RUN:
                    note(f"{name}: {value}")
        recipe = prepared.plan.recipe()
        model = run(recipe, folder, device=device, resume_command=again, held=True, **settings)
        if model is None:
            if json:
                print_json({"finished": False, "run": str(folder), "resume": again})
            return 130
        comparison = _compare(prepared, model, device)
    _report(prepared, folder, model, comparison, json=json)
    return 0


def _plan_pairs(prepared: Prepared, folder: Path) -> list[tuple[str, str]]:
    """What is about to happen, for people."""
    from indexshare.text.files import plural
    from indexshare.train.progress import duration

    plan, data = prepared.plan, prepared.data
    pairs = [("text", f"{plan.asked.text}, {' '.join(plan.asked.folder.patterns)}")]
    for side, name in (("train", "to train on"), ("held_out", "held out")):
        files, num_bytes, tokens = (data.summary[f"{side}_{unit}"] for unit in ("files", "bytes", "tokens"))
        pairs.append((name, f"{plural(files, 'file')}, {num_bytes:,} bytes, {tokens:,} tokens"))
    pairs += [("note", line) for line in data.notes]
    rows = f"{plural(plan.recipe().stages[0].rows, 'row')} of {plan.length:,} tokens"
    pairs += [
        ("start", plan.asked.start),
        ("updates", f"{plan.updates:,}, each {rows}; {prepared.passes:.1f} passes over the text"),
        ("numbers", plan.dtype),
    ]
    if prepared.measured is not None and prepared.seconds is not None:
        pairs += [
            ("time", f"{duration(prepared.seconds)}, as measured by one update ({prepared.measured.update_s:.2f} s)"),
            ("memory", f"{size(prepared.measured.peak_bytes)} at most after that update"),
        ]
    return [*pairs, ("run", str(folder))]


def _show_plan(prepared: Prepared, folder: Path, *, json: bool) -> None:
    if not json:
        print_pairs("dry run: nothing is trained", _plan_pairs(prepared, folder), to=console())
        return
    plan, measured = prepared.plan, prepared.measured
    assert measured is not None
    left_out = [asdict(entry) for entry in prepared.data.left_out]
    print_json(
        {
            "run": str(folder),
            "asked": asdict(plan.asked),
            "text": {k: v for k, v in prepared.data.summary.items() if not k.endswith("hash")},
            "left_out": left_out,
            "updates": plan.updates,
            "row_tokens": plan.length,
            "update_tokens": plan.recipe().stages[0].batch_tokens,
            "passes": prepared.passes,
            "dtype": plan.dtype,
            "seconds": prepared.seconds,
            "measured": asdict(measured),
        }
    )


def _compare(prepared: Prepared, model: Path, device: str) -> Comparison:
    from indexshare.checkpoint.load import load_model
    from indexshare.engine.loading import running_dtype
    from indexshare.eval.comparison import compare_models
    from indexshare.text.tokenizer import Tokenizer

    pair = []
    for directory in (prepared.plan.asked.directory, model):
        loaded = load_model(directory, dtype=running_dtype(None, device), device=device)
        pair.append((loaded, Tokenizer.load(directory)))
    longest = min(8192, pair[0][0].config.max_position_embeddings)
    with MeasuringBar() as bar:
        bar.begin("base against tuned", "files")
        result = compare_models(pair[0], pair[1], prepared.data.documents, max_tokens=longest, progress=bar)
        bar.end()
    return result


def _report(prepared: Prepared, folder: Path, model: Path, found: Comparison, *, json: bool) -> None:
    from indexshare.text.files import plural
    from indexshare.train.curve import curve_rows

    rows = curve_rows(folder)
    if json:
        print_json(
            {
                "finished": True,
                "run": str(folder),
                "model": str(model),
                "start": prepared.plan.asked.start,
                "updates": prepared.plan.updates,
                "text": {k: v for k, v in prepared.data.summary.items() if not k.endswith("hash")},
                "held_out": asdict(found),
                "curve": rows,
            }
        )
        return
    first, last = (row["held_out_bits_per_byte"] for row in (rows[0], rows[-1]))
    files = [found.base.value, found.tuned.value]
    cells = [
        ["file by file", *(f"{bits:.3f}" for bits in files), _percent(found.change), f"{found.xz:.3f}"],
        [f"windows of {prepared.plan.length:,} tokens", f"{first:.3f}", f"{last:.3f}", f"{last / first - 1:+.1%}", ""],
    ]
    title = f"held-out text, bits per byte ({plural(found.files, 'file')}, {found.num_bytes:,} bytes)"
    print_table(title, ["", prepared.plan.asked.start, "tuned", "change", "xz -9e"], cells, to=console(stderr=True))
    write(f"{model}\n")


def _percent(estimate: Estimate) -> str:
    if estimate.interval is None:
        return f"{estimate.value:+.1%}"
    low, high = estimate.interval
    return f"{estimate.value:+.1%} ({low:+.1%} to {high:+.1%})"
