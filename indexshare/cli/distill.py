"""`indexshare distill`: train each indexer for all the layers that it serves, from any checkpoint, by one command."""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from indexshare.cli.output import console, note, print_json, print_pairs, print_table
from indexshare.cli.suite_options import parse_lengths

if TYPE_CHECKING:
    from torch import Tensor

    from indexshare.config.share_plan import SharePlan
    from indexshare.sharing.distil import Distillation
    from indexshare.sharing.floors import GroupFloor

_WINDOWS = 8  # in which loss and floors are measured
EXIT_STOPPED = 130


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DistilOptions:
    """The plan, the text, and how long.

    Parameters
    ----------
    pattern
        The plan as letters, one for each layer: FFFSSS...
    every
        A uniform plan in place of --pattern: every so many layers one chooses, the first of them layer 0.
    offset
        With --every: `index_skip_topk_offset` of the public schedule: so many layers at the start choose, 3 in GLM-5.2
    text
        Folder (or file) to train on, a tenth of its files held out; the model's own training text, by its
        training.json, unless given.
    files
        Only files of --text that match, such as `*.md`; may be given several times.
    warmup_tokens
        Tokens of the first stage, in which indexers alone learn from attention over all earlier tokens: 0 for none.
    tokens
        Tokens of the second one, in which the model learns too, under the selection: 0 for none.
    length
        Tokens of a row.
    rows
        Rows of an update.
    rate
        Factor of all learning rates.
    form
        Of the loss: each (the mean of a KL for each served layer) or mean (one KL to their mean attention). Their
        gradients are the same.
    weights
        Weight of every layer in its indexer's loss, separated by commas, one for each layer; all the same unless given.
    lora
        Train the indexers' matrices by low-rank products of this rank, merged on saving.
    lookups
        Part of the second stage's rows that are generated lookups.
    """

    pattern: str | None = None
    every: int | None = None
    offset: int | None = None
    text: str | None = None
    files: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = ()
    warmup_tokens: str = "1024K"
    tokens: str = "4096K"
    length: str = "2K"
    rows: int = 4
    rate: float = 1.0
    form: Literal["each", "mean"] = "each"
    weights: str | None = None
    lora: int | None = None
    lookups: float = 0.0

    def plan(self, layers: int) -> SharePlan:
        """The plan for so many layers.

        Raises:
            ValueError: none is given, or two, or one that is none.
        """
        from indexshare.config.share_plan import SharePlan

        if (self.pattern is None) == (self.every is None):
            raise ValueError("give the plan by --pattern FFFSSS... or by --every N, one of them")
        if self.pattern is not None:
            if self.offset is not None:
                raise ValueError("--offset goes with --every; a --pattern says all")
            return SharePlan.from_pattern(self.pattern)
        return SharePlan.uniform(layers, self.every or 0, 1 if self.offset is None else self.offset)

    def asked(self, model: str, seed: int, device: str) -> Distillation:
        """The run; ValueError for options that cannot be."""
        from indexshare.config.model import ModelConfig
        from indexshare.config.shipped import model_directory
        from indexshare.sharing.distil import Distillation
        from indexshare.train.recipe import fast_dtype

        if self.files and self.text is None:
            raise ValueError("--files goes with --text; the model's own text is read as training read it")
        layers = ModelConfig.load(model_directory(model)).num_hidden_layers
        return Distillation(
            start=model, plan=self.plan(layers), text=self.text, patterns=self.files,
            warmup_tokens=_number("--warmup-tokens", self.warmup_tokens), joint_tokens=_number("--tokens", self.tokens),
            length=_number("--length", self.length), rows=self.rows, rate=self.rate, form=self.form,
            layer_weights=_weights(self.weights), rank=self.lora, lookups=self.lookups, seed=seed,
            dtype=fast_dtype(device),
        )  # fmt: skip

    def command(self) -> list[str]:
        """The options as they would be typed."""
        default, words = DistilOptions(), list[str]()
        for name, value in asdict(self).items():
            for each in value if isinstance(value, tuple) else (value,):
                if value != getattr(default, name):
                    words += [f"--{name.replace('_', '-')}", str(each)]
        return words


def _number(name: str, text: str) -> int:
    """`2K` or 2048."""
    try:
        numbers = parse_lengths(text) or ()
    except ValueError:
        numbers = ()
    if len(numbers) != 1:
        raise ValueError(f"{name} is {text!r}; expected a number of tokens, such as 2048 or 2K")
    return numbers[0]


def _weights(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text is not None else ()
    except ValueError:
        raise ValueError(f"--weights is {text!r}; expected numbers separated by commas, one for each layer") from None


def distill(
    model: str,
    /,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    options: DistilOptions | None = None,
    seed: int = 0,
    device: str = "cpu",
    checkpoint_minutes: float = 5.0,
    quiet: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Train a model's indexers for the layers they serve under a plan; the same command again goes on where it stopped.

    First the indexers alone learn the attention of all layers they serve, over all earlier tokens; then the model
    learns from text under the selection, and the indexers from what is selected. Loss before and after, and for each
    group the indexer's loss beside the least that one indexer for these layers can reach, are reported at the end.

    Parameters
    ----------
    model
        A shipped model or a model directory. A layer that is Shared there and Full in the plan begins with a copy of
        the indexer that served it.
    out
        Folder of the run: token files, metrics, checkpoints, and the model in OUT/model.
    seed
        Of the order of the text.
    device
        Where to train: cpu, cuda, cuda:1, ...
    checkpoint_minutes
        Time between checkpoints.
    quiet
        Show no progress.
    json
        Print one JSON object at the end.
    """
    from indexshare.cli.options import check_device
    from indexshare.train.loop import run

    check_device(device)
    if not checkpoint_minutes > 0:
        raise ValueError(f"--checkpoint-minutes is {checkpoint_minutes}; expected a time above 0")
    options = options or DistilOptions()
    asked = options.asked(model, seed, device)
    again = _again(model, options, out, seed, device)
    finished = run(
        asked.recipe(), out, device=device, checkpoint_minutes=checkpoint_minutes, quiet=quiet, resume_command=again
    )
    if finished is None:
        if json:
            print_json({"run": str(out), "finished": False, "resume": again})
        return EXIT_STOPPED
    facts = _measured(asked, finished, out, device)
    if json:
        print_json(facts)
    else:
        _show(facts)
    return 0


def _again(model: str, options: DistilOptions, out: Path, seed: int, device: str) -> str:
    words = ["indexshare", "distill", model, *options.command(), "--out", str(out)]
    words += ["--seed", str(seed)] if seed else []
    words += ["--device", device] if device != "cpu" else []
    return shlex.join(words)


def _measured(asked: Distillation, model: Path, out: Path, device: str) -> dict[str, Any]:
    """What became of the model: losses on held-out windows, and what the indexers reach of what they can."""
    from indexshare.checkpoint.load import load_model
    from indexshare.engine.loading import running_dtype
    from indexshare.sharing.floors import group_floors, under_plan, window_loss

    rows = _held_out(asked, out)
    before = load_model(asked.directory, dtype=running_dtype(None, device), device=device)
    untrained = under_plan(before, asked.plan)
    after = load_model(model, dtype=running_dtype(None, device), device=device)
    floors = [group_floors(each, rows[:, :-1], layer_weights=asked.layer_weights) for each in (untrained, after)]
    return {
        "finished": True, "run": str(out), "model": str(model), "start": asked.start, "pattern": asked.plan.pattern,
        "start_pattern": before.plan.pattern, "windows": len(rows), "length": rows.shape[1] - 1,
        "loss": {
            "start": window_loss(before, rows), "untrained": window_loss(untrained, rows),
            "distilled": window_loss(after, rows),
        },
        "groups": [_group(was, now) for was, now in zip(*floors, strict=True)],
    }  # fmt: skip


def _held_out(asked: Distillation, out: Path) -> Tensor:
    """Windows of the run's held-out text, or fewer where it ends before."""
    from indexshare.sharing.windows import take_windows
    from indexshare.text.tokenizer import Tokenizer

    documents = asked.recipe().text.split().held_out
    tokenizer = Tokenizer.load(out / "data")
    return take_windows(tokenizer, documents, length=asked.length + 1, most=_WINDOWS, wanted=None, seed=asked.seed)


def _group(was: GroupFloor, now: GroupFloor) -> dict[str, Any]:
    return {"full": now.full, "layers": list(now.layers), "before": asdict(was), "after": asdict(now)}


def _show(facts: dict[str, Any]) -> None:
    start, loss = facts["loss"]["start"], facts["loss"]
    pairs = [(f"{facts['start']} as it is, {facts['start_pattern']}", f"{start:.5f}")]
    for name, key in (("under the plan, untrained", "untrained"), ("distilled", "distilled")):
        pairs.append((name, f"{loss[key]:.5f}  ({100 * (loss[key] / start - 1):+.3f} %)"))
    title = f"{facts['pattern']}: loss on {facts['windows']} held-out windows of {facts['length']:,} tokens"
    print_pairs(title, pairs, to=console())
    print()
    rows = [
        (
            str(group["full"]), ",".join(map(str, group["layers"])), f"{group['before']['loss']:.4f}",
            f"{group['after']['loss']:.4f}", f"{group['after']['floor']:.4f}",
            " ".join(f"{value:.3f}" for value in group["after"]["kl"]),
        )
        for group in facts["groups"]
    ]  # fmt: skip
    columns = ("indexer", "serves", "loss before", "after", "floor", "KL of each layer")
    print_table("indexers, in nats over all earlier tokens", columns, rows, to=console(), text=(0, 1, 5))
    note(f"written: {facts['model']}")
