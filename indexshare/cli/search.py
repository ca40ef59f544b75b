"""`indexshare search`: which layers should keep their indexer, found without training."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from indexshare.cli.measuring import MeasuringBar
from indexshare.cli.output import console, note, print_json, print_pairs, print_table
from indexshare.cli.overlap import WindowOptions, stopped
from indexshare.cli.suite_options import TextOptions, parse_lengths

if TYPE_CHECKING:
    from torch import Tensor

    from indexshare.eval.subject import Subject
    from indexshare.sharing.search import Step
    from indexshare.sharing.trial import Trial

_WINDOWS = 32
Method = Literal["greedy", "beam", "similarity", "uniform"]
Objective = Literal["loss", "far", "lookup"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """How a plan is found, and what is best.

    Parameters
    ----------
    method
        greedy (the published algorithm), beam, similarity (of attention outputs; the published alternative) or uniform
        (nothing is searched; to compare with).
    objective
        loss (of all tokens), far (of the second half of each window) or lookup (of generated lookups in place of text).
    refine
        Go on by exchanging a Full and a Shared layer as long as that helps.
    beam
        Plans that go on from each size, for --method beam.
    blocks
        Pipeline blocks: the first layer of each stays Full, and each step decides one layer of every block.
    exact
        Run every candidate on every window; otherwise those that are clearly worse leave early.
    tolerance
        Differences of so many percent of the loss do not matter: a decision is made when no candidate can be better by
        more, with less work where candidates are nearly equal; 0 decides between them too.
    length
        Tokens of a window: 4K, or what the model reads, unless given.
    memory_gib
        Memory for activations that are kept; windows that find no room are run from the first layer again.
    """

    method: Method = "greedy"
    objective: Objective = "loss"
    refine: Annotated[bool, Parameter(negative="")] = False
    beam: int = 4
    blocks: int = 1
    exact: Annotated[bool, Parameter(negative="")] = False
    tolerance: float = 0.0
    length: str | None = None
    memory_gib: float = 2.0

    def check(self) -> None:
        """Refuse (ValueError) numbers that mean nothing, and options of other methods."""
        if self.beam < 1:
            raise ValueError(f"--beam is {self.beam}; expected 1 or more plans")
        if not 0 <= self.tolerance < 100:
            raise ValueError(f"--tolerance is {self.tolerance:g}; expected percent of the loss, 0 or more")
        if not 0 <= self.memory_gib < 2**20:
            raise ValueError(f"--memory-gib is {self.memory_gib:g}; expected a number of GiB, 0 or more")
        if self.blocks != 1 and self.method != "greedy":
            raise ValueError(f"--blocks goes with --method greedy, not {self.method}; leave one of them out")


def search(
    model: str,
    /,
    *,
    keep: str,
    how: MethodOptions | None = None,
    text: TextOptions | None = None,
    options: WindowOptions | None = None,
    state: Path | None = None,
    plot: Path | None = None,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Find which layers should keep their indexer, by the model's own loss on windows of text; nothing is trained.

    The pattern is given in every public spelling. With --state, the same command goes on after an interruption, and
    another --keep or --method makes use of the losses that are known.

    Parameters
    ----------
    model
        A shipped model or a model directory, best one with an indexer in every layer.
    keep
        Layers that stay Full: a part of all layers, rounded up (1/4), or a number (4).
    state
        Keep losses in this file as they are measured.
    plot
        Draw the loss by layers shared, and what each candidate would have cost (png, svg or pdf; needs matplotlib).
    out
        Write the model under the plan that was found into this folder, without the indexers that it leaves idle.
    json
        Print one JSON object instead of tables.
    """
    from indexshare.eval.plots import check_picture

    how, text, options = how or MethodOptions(), text or TextOptions(), options or WindowOptions()
    how.check()
    if plot is not None:
        check_picture(plot)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; expected a folder to write the model into")
    subject = _load(model, how, text, options)
    number = _checked(subject, keep, how)
    windows = _windows(subject, how, options)
    with _trial(subject, how, windows, state, options) as trial:
        steps = _steps(trial, subject, windows, number, how)
    facts = _facts(model, steps, trial, how)
    if plot is not None:
        _draw(model, steps, plot)
    if out is not None:
        _write(model, steps[-1], out, facts)
    if json:
        print_json(facts)
    else:
        _show(model, steps, facts)


def _load(model: str, how: MethodOptions, text: TextOptions, options: WindowOptions) -> Subject:
    if how.objective != "lookup":
        return options.load(model, text)
    if text != TextOptions():
        raise ValueError("--objective lookup makes its own texts; leave --text, --pattern and --packages out")
    from indexshare.cli.options import check_device
    from indexshare.eval.subject import load_subject

    check_device(options.device)
    return load_subject(model, needs_text=False, dtype=options.dtype, device=options.device)


def _checked(subject: Subject, keep: str, how: MethodOptions) -> int:
    """Full layers to be kept; ValueError before any work."""
    from indexshare.sharing.search import block_starts, check_start, layers_to_keep

    plan = subject.model.plan
    number = layers_to_keep(keep, plan.num_layers)
    check_start(plan, number, block_starts(plan.num_layers, how.blocks))
    return number


def _length(subject: Subject, how: MethodOptions) -> int:
    from indexshare.sharing.windows import check_window

    sizes = parse_lengths(how.length) or (min(4096, subject.context),)
    if len(sizes) != 1:
        raise ValueError(f"--length is {how.length!r}; expected one length, such as 4K")
    check_window(subject.model.config, sizes[0])
    return sizes[0]


def _windows(subject: Subject, how: MethodOptions, options: WindowOptions) -> Tensor:
    """Rows of one token more than a window has, for its last target."""
    import torch

    from indexshare.data.sources.generated import LookupTasks

    length = _length(subject, how) + 1
    if how.objective != "lookup":
        return options.take(subject, length, _WINDOWS)
    count = _WINDOWS if options.windows is None else options.windows
    if count < 1:
        raise ValueError(f"--windows is {count}; expected 1 or more")
    source = LookupTasks(subject.tokenizer, seed=options.seed)
    return torch.stack([torch.from_numpy(source.window(length)) for _ in range(count)])


@contextmanager
def _trial(
    subject: Subject, how: MethodOptions, windows: Tensor, file: Path | None, options: WindowOptions
) -> Iterator[Trial]:
    """The trial, with progress; what it has found is kept however it ends."""
    from indexshare.sharing.state_file import StateFile
    from indexshare.sharing.trial import Trial

    length = windows.shape[1] - 1
    counted = length - length // 2 if how.objective == "far" else length
    request = {
        "model": subject.name, "pattern": subject.model.plan.pattern, "dtype": str(subject.dtype), "counted": counted,
        "windows": list(windows.shape), "text": hashlib.sha256(windows.numpy().tobytes()).hexdigest(),
    }  # fmt: skip
    kept = StateFile(file, request)
    with MeasuringBar() as bar, bar.stage("search", "layer evaluations") as progress:
        most = _most(subject, windows)
        trial = Trial(
            subject.model, windows, counted=counted, memory=int(how.memory_gib * 2**30), state=kept,
            progress=lambda done: progress(done, max(done, most)),
        )  # fmt: skip
        try:
            yield trial
        except KeyboardInterrupt:
            note(stopped(file))
            raise
        finally:
            trial.keep_now()


def _most(subject: Subject, windows: Tensor) -> int:
    """Layer evaluations that a search takes at about the most, for the progress bar."""
    layers = subject.model.plan.num_layers
    return len(windows) * layers * layers * layers // 6


def _steps(trial: Trial, subject: Subject, windows: Tensor, keep: int, how: MethodOptions) -> list[Step]:
    """The decisions; the last one is the plan that was found."""
    from indexshare.sharing.search import Step, beam, block_starts, greedy, refine, uniform
    from indexshare.sharing.similarity import most_similar, similarities

    start, tell, part = trial.base, note, how.tolerance / 100
    if how.method == "greedy":
        steps = greedy(trial, keep, blocks=how.blocks, exact=how.exact, tolerance=part, tell=tell)
    elif how.method == "beam":
        steps = beam(trial, keep, width=how.beam, tell=tell)
    else:
        if how.method == "uniform":
            plan = uniform(start.num_layers, keep)
            _check_available(start.full_layers, plan.full_layers, plan.pattern)
        else:
            plan = most_similar(similarities(subject.model, windows[:, :-1]), keep)
        steps = [Step(plan=start, loss=trial.loss(start)), Step(plan=plan, loss=trial.loss(plan))]
    if how.refine:
        pinned = block_starts(start.num_layers, how.blocks)
        steps += refine(
            trial, steps[-1], available=start.full_layers, pinned=pinned, exact=how.exact, tolerance=part, tell=tell
        )
    return steps


def _check_available(there: tuple[int, ...], wanted: tuple[int, ...], pattern: str) -> None:
    missing = sorted(set(wanted) - set(there))
    if missing:
        raise ValueError(
            f"{pattern} needs indexers in layers {missing}, which the checkpoint lacks; it has {list(there)}"
        )


def _facts(model: str, steps: list[Step], trial: Trial, how: MethodOptions) -> dict[str, Any]:
    from indexshare.sharing.search import plain_evaluations
    from indexshare.sharing.spellings import spellings

    first, last = steps[0], steps[-1]
    plain = plain_evaluations(
        len(first.plan.full_layers), len(last.plan.full_layers), first.plan.num_layers, trial.windows
    )
    return {
        "model": model,
        "method": {key: value for key, value in asdict(how).items() if key != "memory_gib"},
        "windows": trial.windows,
        "pattern": last.plan.pattern,
        "loss": last.loss,
        "loss_at_start": first.loss,
        "layer_evaluations": trial.evaluations,
        "plain_layer_evaluations": plain,
        "spellings": spellings(last.plan),
        "steps": [
            {"pattern": s.plan.pattern, "loss": s.loss, "candidates": [asdict(each) for each in s.standings]}
            for s in steps
        ],
    }


def _draw(model: str, steps: list[Step], plot: Path) -> None:
    from indexshare.eval.plots import draw
    from indexshare.sharing.curves import draw_candidates, draw_losses

    panels: list[Callable[[Any], None]] = [partial(draw_losses, steps=steps), partial(draw_candidates, steps=steps)]
    draw([panels], plot, f"{model}: {steps[-1].plan.pattern}")
    note(f"written: {plot}")


def _write(model: str, step: Step, out: Path, facts: dict[str, Any]) -> None:
    from indexshare.config.shipped import model_directory
    from indexshare.eval.subject import split_sharing
    from indexshare.sharing.spellings import write_checkpoint

    write_checkpoint(model_directory(split_sharing(model)[0]), step.plan, out, record=facts)
    note(f"written: {out}")


def _show(model: str, steps: list[Step], facts: dict[str, Any]) -> None:
    first = steps[0]
    rows = [
        (s.plan.pattern, str(len(s.plan.full_layers)), f"{s.loss:.5f}", f"{100 * (s.loss / first.loss - 1):+.3f} %")
        for s in steps
    ]
    print_table(f"{model}: plans", ("pattern", "Full layers", "loss", "against the start"), rows, to=console())
    print()
    said = facts["spellings"]
    pairs = [(key, str(value) if not isinstance(value, list) else " ".join(value)) for key, value in said.items()]
    done, plain = facts["layer_evaluations"], facts["plain_layer_evaluations"]
    pairs.append(
        ("layer evaluations", f"{done:,}; the plain algorithm takes {plain:,}, {plain / max(1, done):.1f} times")
    )
    print_pairs("the pattern found", pairs, to=console())
