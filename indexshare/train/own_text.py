"""Fine-tuning a model on one's own text: what is read, how long rows and the run are, and the recipe that follows.

The one stage goes on as the last stage of `recipes/nano.py` and `recipes/pico.py` ends: sparse attention under the
model's own share plan, each indexer learning from the attention of all layers that it serves, the draft layer too.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Literal

from indexshare.config.fields import check_fields
from indexshare.config.model import ModelConfig
from indexshare.config.shipped import model_directory, shipped_models
from indexshare.data.corpus import STANDARD_LIBRARY, TextFolder, anywhere
from indexshare.planner.machine import peak_memory_bytes
from indexshare.text.files import GENERATED_FOLDERS
from indexshare.train.checkpoint import NAME, PREVIOUS
from indexshare.train.history import training_record
from indexshare.train.objectives import Balance, Draft, Indexer, NextToken, Objective
from indexshare.train.optim import OptimConfig, Schedule
from indexshare.train.recipe import PreparedData, Recipe, fast_dtype, prepare
from indexshare.train.stages import Stage, index_share
from indexshare.train.trainer import Trainer
from indexshare.train.workers import compute_threads

PLAN_FILE = "own_text.json"
_EXCLUDE = (".*", *sorted(GENERATED_FOLDERS), "runs")  # hidden, generated, and where runs go unless told otherwise
_MAX_BYTES = 64_000_000  # of a file: what is named is wanted, however long
_LONGEST_ROWS, _SHORTEST_ROWS = 1024, 16
_MOST_STEPS, _MOST_MINUTES = 10**9, 525_600
_LEAST_ROWS = 8  # of one length, that the text must fill
_ROWS = 4  # in an update
_PASSES, _MINUTES = 4.0, 10.0  # over the text, of time: whichever is less, unless told otherwise
_EVALUATIONS = 5  # in a run
_EVALUATED = 8_192  # held-out tokens in each
_SHORT_S = 3.0
_KL_QUERIES = 128  # of a row, from which indexers learn
_INDEXER = 1.5e-3  # their rate
_UNKNOWN_RATE = 1e-3  # of a model that does not say how it was trained


@dataclass(frozen=True, kw_only=True)
class OwnText:
    """What somebody asks for.

    Attributes:
        text: folder or file.
        patterns: globs (`anywhere`); all files where there are none.
        start: shipped model or model directory to begin with. Paths become full ones.
        steps, minutes: updates, or the time they may take; at most one of them.
        rate: factor of all learning rates.
        length: tokens in a row; by the size of the text where None.
        held_out: part of the text that is kept from training, to measure on.
        seed: of the order of the text.
        out: the run's folder, which is not read where it lies below `text`.

    Raises:
        ValueError: a value out of range, or no such model.
    """

    text: str
    patterns: tuple[str, ...] = ()
    start: str = "nano"
    steps: int | None = None
    minutes: float | None = None
    rate: float = 1.0
    length: int | None = None
    held_out: float = 0.1
    seed: int = 0
    out: str = "runs"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.steps is not None and self.minutes is not None:
            raise ValueError(f"--steps {self.steps} and --minutes {self.minutes} both say how long; give one of them")
        for name, least, most in (("steps", 1, _MOST_STEPS), ("length", _SHORTEST_ROWS, 2**31 - 1)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ValueError(f"--{name} is {value}; expected at least {least}, at most {most}")
        if self.minutes is not None and self.minutes > _MOST_MINUTES:
            raise ValueError(f"--minutes is {self.minutes:g}; expected at most {_MOST_MINUTES}, a year")
        for name in ("minutes", "rate"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name} is {value}; expected a number above 0")
        if self.text != STANDARD_LIBRARY:
            object.__setattr__(self, "text", str(Path(self.text).expanduser().absolute()))
        if self.start not in shipped_models():
            start = Path(self.start).expanduser()
            model_directory(str(start) if self.start else "")  # by the name as it was typed, for the message
            object.__setattr__(self, "start", str(start.absolute()))
        object.__setattr__(self, "out", str(Path(self.out).absolute()))
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"--held-out is {self.held_out}; expected a part of the text between 0 and 1, such as 0.1")

    @property
    def folder(self) -> TextFolder:
        """The text."""
        patterns = tuple(map(anywhere, self.patterns)) or ("**/*",)
        out, exclude = Path(self.out), _EXCLUDE
        if out.is_relative_to(self.text) and out != Path(self.text):
            exclude += (out.relative_to(self.text).as_posix() + "/",)
        return TextFolder(
            path=self.text, pattern=patterns, exclude=exclude, held_out=self.held_out, max_bytes=_MAX_BYTES
        )

    @property
    def directory(self) -> Path:
        """The model that the run begins with."""
        return model_directory(self.start)

    @property
    def name(self) -> str:
        """Of the run: the start's and the text's."""
        start = PurePath(self.start)
        start = start.parent if start.name == "model" and start.parent.name else start
        parts = (start.name, PurePath(self.folder.path).stem)
        return "-".join(re.sub(r"[^\w.]+", "_", part).strip("._") or "text" for part in parts)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one update, and one evaluation during the run, took here; and the largest memory of the process so far."""

    update_s: float
    evaluation_s: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was decided when the run began; kept in its folder, so that the same command goes on with the same run."""

    asked: OwnText
    updates: int
    length: int
    dtype: Literal["bfloat16", "float32"]

    def recipe(self) -> Recipe:
        """The run."""
        asked = self.asked
        config = ModelConfig.load(asked.directory)
        return Recipe(
            name=asked.name,
            model=config,
            text=asked.folder,
            stages=(_stage(config, self.updates, self.length, asked.rate, training_record(asked.directory) or {}),),
            seed=asked.seed,
            start=asked.start,
            dtype=self.dtype,
            held_out_windows=max(4, _EVALUATED // self.length),
            evaluate_every=-(-self.updates // _EVALUATIONS),
            evaluate_first=True,
        )

    def save(self, folder: Path) -> None:
        """Write it into the run's folder."""
        temporary = folder / (PLAN_FILE + ".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, folder / PLAN_FILE)


def _stage(config: ModelConfig, updates: int, length: int, rate: float, record: Mapping[str, Any]) -> Stage:
    """The stage, after a model that was trained as its record says."""
    objectives: tuple[Objective, ...] = (
        NextToken(),
        Indexer(keys="all", target="served", stride=max(1, length // _KL_QUERIES)),
        Balance(),
    )
    if config.num_nextn_predict_layers:
        objectives += (Draft(steps=2),)
    batch = _ROWS * length
    reach = position_reach(record, config)
    return index_share(
        config.share_plan,
        name="own_text",
        tokens=updates * batch,
        sequence_length=length,
        batch_tokens=batch,
        micro_tokens=length,
        position_reach=reach if reach > length else 0,
        mixture={"text": 1.0},
        objectives=objectives,
        optim=OptimConfig(
            muon_lr=rate * peak_rate(record, "muon_lr"),
            adam_lr=rate * peak_rate(record, "adam_lr"),
            indexer_lr=rate * _INDEXER,
        ),
        schedule=Schedule(kind="cosine", warmup=0.05, final=0.05),
    )


def position_reach(record: Mapping[str, Any], config: ModelConfig) -> int:
    """Positions that the last stage of the model's own training spread its rows over; 0 for none, or not known.

    Rows stay spread like that, or the far distances that the model has learned would be forgotten.
    """
    stages = record.get("stages") or [{}]
    return min(int(stages[-1].get("position_reach", 0)), config.max_position_embeddings)


def peak_rate(record: Mapping[str, Any], name: str) -> float:
    """The highest rate that the model, and those it comes from, were trained with: what it is known to bear."""
    rates = []
    while record:
        rates += [float(stage["optim"][name]) for stage in record.get("stages", ()) if name in stage.get("optim", ())]
        record = record.get("ancestor") or {}
    return max(rates, default=_UNKNOWN_RATE)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A plan, its data in tokens, and what was measured for it."""

    plan: Plan
    data: PreparedData
    measured: Measured | None

    @property
    def passes(self) -> float:
        """How often the run goes through the text."""
        stage = self.plan.recipe().stages[0]
        return self.plan.updates * stage.batch_tokens / len(self.data.train)

    @property
    def seconds(self) -> float | None:
        """What the updates and the evaluations between them will take, from those measured."""
        if self.measured is None:
            return None
        evaluations = 1 + -(-self.plan.updates // self.plan.recipe().evaluate_every)
        return self.plan.updates * self.measured.update_s + evaluations * self.measured.evaluation_s


def prepare_run(asked: OwnText, folder: Path, *, device: str = "cpu", always_measure: bool = False) -> Prepared:
    """Read the text and decide on the run; a plan that is in the folder already is kept.

    Args:
        asked: what somebody wants.
        folder: of the run; gets token files in `data/` and the plan.
        device: of the model.
        always_measure: time an update even where that decides nothing.

    Raises:
        ValueError: no text or too little of it, no such model, or another plan in the folder.
    """
    kept = _kept_plan(asked, folder)
    dtype = fast_dtype(device) if kept is None else kept.dtype
    first = kept or Plan(asked=asked, updates=1, length=asked.length or _SHORTEST_ROWS, dtype=dtype)
    data = prepare(first.recipe(), folder / "data")
    plan = kept or Plan(asked=asked, updates=1, length=_row_length(asked, data), dtype=dtype)
    measured = None
    if always_measure or (kept is None and asked.steps is None):
        measured = _measure(replace(plan, updates=2).recipe(), data, device)
    if kept is None:
        plan = replace(plan, updates=_updates(asked, plan, data, measured))
        plan.save(folder)
    return Prepared(plan=plan, data=data, measured=measured)


def _kept_plan(asked: OwnText, folder: Path) -> Plan | None:
    """The plan by which the run in the folder began, None where none has; ValueError if something else was asked."""
    file = folder / PLAN_FILE
    if not file.is_file() or not any((folder / name).is_file() for name in (NAME, PREVIOUS)):
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        plan = Plan(**(values | {"asked": OwnText(**values["asked"])}))
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{file} cannot be read ({error}); use another folder, or delete this one") from None
    was, now = asdict(plan.asked), asdict(asked)
    differing = [f"{key} was {was[key]!r}, is now {now[key]!r}" for key in was if was[key] != now[key]]
    if differing:
        raise ValueError(
            f"the run in {folder} was begun otherwise: {', '.join(differing)}; use another folder with --out (to train "
            f"on from its model: --start {folder / 'model'})"
        )
    return plan


def _row_length(asked: OwnText, data: PreparedData) -> int:
    """Tokens of a row: what was asked for, or the longest power of two that fills several rows of this text."""
    if asked.length is not None:
        return asked.length
    length = _LONGEST_ROWS
    while length > _SHORTEST_ROWS and len(data.train) < _LEAST_ROWS * length:
        length //= 2
    return length


def _updates(asked: OwnText, plan: Plan, data: PreparedData, measured: Measured | None) -> int:
    """How many updates the run has."""
    if asked.steps is not None:
        return asked.steps
    assert measured is not None
    minutes = _MINUTES if asked.minutes is None else asked.minutes
    left = 60 * minutes - (_EVALUATIONS + 1) * measured.evaluation_s
    fitting = int(left / measured.update_s)
    if asked.minutes is None:
        fitting = min(fitting, math.ceil(_PASSES * len(data.train) / plan.recipe().stages[0].batch_tokens))
    return max(1, fitting)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _measure(recipe: Recipe, data: PreparedData, device: str) -> Measured:
    """Time an update and an evaluation, and leave no trace."""
    with tempfile.TemporaryDirectory() as nowhere, compute_threads(device) as workers:
        trainer = Trainer(recipe, Path(nowhere), data, device, workers)
        evaluation = _seconds(trainer.evaluate)
        update = _seconds(trainer.advance)
        if update < _SHORT_S:  # the first one also allocates, which matters where it is short
            update = _seconds(trainer.advance)
    return Measured(update_s=update, evaluation_s=evaluation, peak_bytes=peak_memory_bytes())
