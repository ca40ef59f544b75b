"""A training run as data: the model, its text, its stages. Recipes are Python functions that return one."""

from __future__ import annotations

import importlib.util
import traceback
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from indexshare.config.fields import check_fields
from indexshare.config.model import ModelConfig
from indexshare.config.share_plan import SharePlan
from indexshare.config.shipped import model_directory, shipped_models
from indexshare.data.corpus import TokenCorpus
from indexshare.data.packages import TrainingText
from indexshare.data.sources import Material, Mixture, make_source, source_names, weight_of
from indexshare.data.splitting import Document, Split
from indexshare.planner.machine import cpu_features
from indexshare.text.files import SkippedFile, describe_skipped, plural
from indexshare.text.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe
from indexshare.train.stages import Stage


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A full training run.

    Attributes:
        name: of the run and of the model it makes.
        model: the final configuration; stages may train it with more Full layers before.
        text: the training text.
        stages: in order; names are unique.
        seed: of the initial weights and of all data order.
        start: model directory, or the name of a shipped model, whose weights and tokenizer the run begins with; None
            begins from random weights. Where its layers are Shared, each gets a copy of the indexer that served it.
        ancestor: recipe file whose run writes `start`; `indexshare train` runs it first where nothing is there.
        stages_before: how many stages of another run came before these; batches and rotary positions are then those
            of that run's next stages.
        keep: names of stages after which the model is also written, to `stages/NAME` in the run's folder.
        dtype: of the model's parameters and products; float32 master copies are kept in any case. `auto` is what
            `fast_dtype` says where the run begins, and the model is written in bfloat16.
        held_out_windows: rows of held-out text in each evaluation.
        evaluate_every: updates between evaluations.
        evaluate_first: whether to evaluate before the first update too.
    """

    name: str
    model: ModelConfig
    text: TrainingText
    stages: tuple[Stage, ...]
    seed: int = 0
    start: str | None = None
    ancestor: str | Path | None = None
    stages_before: int = 0
    keep: tuple[str, ...] = ()
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    held_out_windows: int = 32
    evaluate_every: int = 50
    evaluate_first: bool = False

    def __post_init__(self) -> None:
        check_fields(self, f"recipe {self.name!r}: ")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"recipe {self.name!r} has seed {self.seed}; expected zero or more, below 2**63")
        if self.held_out_windows < 1 or self.evaluate_every < 1:
            raise ValueError(
                f"recipe {self.name!r} has held_out_windows {self.held_out_windows} and evaluate_every "
                f"{self.evaluate_every}; expected at least 1 of each"
            )
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"recipe {self.name!r} has stages {names}; expected one or more, with unique names")
        unknown = sorted(set(self.keep) - set(names))
        if unknown:
            raise ValueError(f"recipe {self.name!r} keeps stages {unknown}; it has {names}")
        whole = self.model.num_hidden_layers
        depth = whole if self.start is not None else 0
        indexers = set(range(depth))
        for stage in self.stages:
            layers = whole if stage.layers is None else stage.layers
            if layers > whole:
                raise ValueError(f"recipe {self.name!r}, stage {stage.name!r} has {layers} layers, the model {whole}")
            if layers < depth:
                raise ValueError(
                    f"recipe {self.name!r}, stage {stage.name!r} has {layers} layers, fewer than the {depth} trained "
                    "before it; layers join and do not leave"
                )
            if depth < layers and not stage.trains("trunk"):
                raise ValueError(
                    f"recipe {self.name!r}, stage {stage.name!r} does not train the trunk, but layers {depth} to "
                    f"{layers - 1} have not been trained; let them join in a stage before it"
                )
            self._check(stage, indexers | set(range(depth, layers)))
            depth, indexers = layers, set(self.stage_model(stage).share_plan.full_layers)
        if depth != whole:
            raise ValueError(f"recipe {self.name!r} ends with {depth} of {whole} layers; leave `layers` out at the end")

    def _check(self, stage: Stage, indexers: set[int]) -> None:
        """Refuse now what would fail hours into the run; `indexers` are the layers that still have one."""
        where = f"recipe {self.name!r}, stage {stage.name!r}"
        reach = max(stage.sequence_length, stage.position_reach)
        if reach > self.model.max_position_embeddings:
            raise ValueError(
                f"{where} has rows over {reach} positions; the model's context is {self.model.max_position_embeddings}"
            )
        unknown = sorted(set(stage.mixture) - set(source_names()))
        weights = stage.weights.values()
        if unknown or min(weights, default=0.0) < 0 or sum(weights) <= 0:
            raise ValueError(
                f"{where} has the mixture {stage.mixture}; expected weights of {source_names()}, none negative, one "
                "positive"
            )
        for objective in stage.objectives:
            try:
                objective.check(sequence_length=stage.sequence_length, model=self.model)
            except ValueError as error:
                raise ValueError(f"{where} {error}") from error
        lost = sorted(set(self.stage_model(stage).share_plan.full_layers) - indexers)
        if lost:
            raise ValueError(f"{where} has Full layers {lost} whose indexers an earlier stage dropped")

    def stage_model(self, stage: Stage) -> ModelConfig:
        """The model's configuration in a stage: its layers, and its share plan or every layer Full."""
        layers = stage.layers or self.model.num_hidden_layers
        plan = stage.plan or SharePlan.all_full(layers)
        kinds = self.model.mlp_layer_types[:layers]
        return self.model.replace(num_hidden_layers=layers, indexer_types=plan.types, mlp_layer_types=kinds)

    def scaled(self, part: float) -> Recipe:
        """The same run with a part of the tokens of every stage: for trying it out."""
        return replace(self, stages=tuple(stage.scaled(part) for stage in self.stages))


@dataclass(kw_only=True)
class PreparedData:
    """What a recipe's text became: tokenizer, token files, and how files were split."""

    tokenizer: Tokenizer
    train: TokenCorpus
    held_out: TokenCorpus
    documents: list[Document] = field(repr=False)  # held out
    summary: dict[str, Any]
    notes: list[str] = field(default_factory=list)  # about the text, for people
    left_out: tuple[SkippedFile, ...] = ()

    @property
    def material(self) -> Material:
        """What sources make rows from."""
        return Material(corpus=self.train, tokenizer=self.tokenizer)

    def mixture(self, stage: Stage, seed: int) -> Mixture:
        """The stage's stream of batches."""
        sources = {name: make_source(name, use, self.material, seed) for name, use in stage.mixture.items()}
        return Mixture(sources, stage.weights, seed=seed)


def prepare(recipe: Recipe, directory: str | Path) -> PreparedData:
    """Read and split the text, train the tokenizer (once), and write the token files.

    Args:
        recipe: the run.
        directory: where tokenizer and token files are kept; they are reused if the data is the same.

    Raises:
        ValueError: no text, nothing on one side of the split, too little for the longest rows, or a tokenizer in
            the directory that does not fit the model.
    """
    folder = Path(directory)
    split = recipe.text.split()
    _check_sides(split)
    tokenizer = _tokenizer(recipe, folder, split)
    if tokenizer.vocab_size > recipe.model.vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} entries, the model {recipe.model.vocab_size}; "
            "it belongs to another run: use another folder"
        )
    train = TokenCorpus.build(split.train, tokenizer, folder / "train.bin")
    material = Material(corpus=train, tokenizer=tokenizer)
    for stage in recipe.stages:
        for name, use in stage.mixture.items():
            if weight_of(use):
                make_source(name, use, material, recipe.seed).check_length(stage.sequence_length + 1)
    held_out = TokenCorpus.build(split.held_out, tokenizer, folder / "held_out.bin")
    return PreparedData(
        tokenizer=tokenizer,
        train=train,
        held_out=held_out,
        documents=split.held_out,
        summary=_summary(split, train, held_out),
        notes=_notes(split),
        left_out=split.left_out,
    )


def _tokenizer(recipe: Recipe, folder: Path, split: Split) -> Tokenizer:
    """That of the folder, if a run has been there; else the start's, or one trained on the text.

    Raises:
        ValueError: the folder's is not the one that the model to start from has.
    """
    there = (folder / "tokenizer.json").is_file()
    if recipe.start is not None and not (there and _model_at(recipe.start) is None):
        tokenizer = Tokenizer.load(start_directory(recipe))
        if there and Tokenizer.load(folder).fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"the tokenizer in {folder} is not that of {recipe.start}; it belongs to another run: use another "
                f"folder, or delete {folder}"
            )
    elif there:
        return Tokenizer.load(folder)
    else:
        tokenizer = train_bpe((d.text for d in split.train), recipe.model.vocab_size, SPECIAL_TOKENS)
    if not there:
        tokenizer.save(folder)
    return tokenizer


def _check_sides(split: Split) -> None:
    """Refuse (ValueError) a split that leaves nothing to train on, or nothing to measure on."""
    if not split.train:
        number = plural(len(split.held_out), "file")
        raise ValueError(f"nothing is left to train on, {number} being held out; make `held_out` smaller")
    if not split.held_out:
        why = "; make `held_out` larger"
        if split.near_copies:
            copies = plural(split.near_copies, "file")
            why = f": {copies} would have been, but training has most of the lines; add text, or leave the copies out"
        raise ValueError(f"nothing is held out to measure on{why}")


def fast_dtype(device: str) -> Literal["bfloat16", "float32"]:
    """bfloat16 where the machine computes in it; emulated on other processors, it takes three times as long."""
    return "bfloat16" if device != "cpu" or cpu_features().get("avx512_bf16", False) else "float32"


def missing_ancestor(recipe: Recipe) -> str | Path | None:
    """The recipe file to run first: that of the model this run starts from, unless the model is there."""
    return None if recipe.start is None or _model_at(recipe.start) is not None else recipe.ancestor


def start_directory(recipe: Recipe) -> Path:
    """Where the run begins; ValueError says which recipe makes it."""
    assert recipe.start is not None
    directory = _model_at(recipe.start)
    if directory is None:
        maker = "the recipe that makes it" if recipe.ancestor is None else f"`indexshare train {recipe.ancestor}`"
        raise ValueError(
            f"recipe {recipe.name!r} starts from {recipe.start}, where there is no model; run {maker} first, in the "
            f"same folder, or start from a shipped model ({', '.join(shipped_models())})"
        )
    return directory


def _model_at(start: str) -> Path | None:
    """The folder of a shipped model or of a model directory (`~` for the home folder); None if there is none."""
    try:
        return model_directory(start if start in shipped_models() else Path(start).expanduser())
    except ValueError:
        return None


def _notes(split: Split) -> list[str]:
    """What was left out, but for what needs nobody's attention, and what was done about few files."""
    worth_a_word = [entry for entry in split.left_out if not entry.routine]
    return [line for line in (describe_skipped(worth_a_word), split.note) if line]


def _summary(split: Split, train: TokenCorpus, held_out: TokenCorpus) -> dict[str, Any]:
    return split.facts | {
        "data_hash": train.data_hash,
        "held_out_hash": held_out.data_hash,
        "train_tokens": len(train),
        "train_bytes": train.num_bytes,
        "held_out_tokens": len(held_out),
        "held_out_bytes": held_out.num_bytes,
    }


def load_recipe(path: str | Path) -> Recipe:
    """Run the function `recipe` of a Python file.

    Raises:
        ValueError: no such file, or it has no function `recipe` that returns a Recipe.
    """
    result = recipe_object(path)
    if not isinstance(result, Recipe):
        raise ValueError(f"{Path(path)} has no function `recipe` that returns a Recipe")
    return result


def recipe_object(path: str | Path) -> object:
    """What the function `recipe` of a Python file returns, whatever it is; None without one. Errors: `load_recipe`."""
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        kind = "is a folder" if file.is_dir() else "is not a Python file" if file.is_file() else "does not exist"
        raise ValueError(f"{file} {kind}; give a Python file with a function `recipe`, such as recipes/nano.py")
    spec = importlib.util.spec_from_file_location(f"indexshare_recipe_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        make = getattr(module, "recipe", None)
        return make() if callable(make) else None
    except ValueError as error:  # says itself what is wrong with the run that the file describes
        raise ValueError(f"{_place(error, file)}: {error}") from error
    except Exception as error:  # whatever the user's file does wrong, the line where it did
        raise ValueError(f"{_place(error, file)}: {type(error).__name__}: {error}") from error


def _place(error: Exception, file: Path) -> str:
    """The last line of a recipe's own file that an error passed through, as `file:line`."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"{file if error.filename is None else Path(error.filename)}:{error.lineno}"
    own = file.resolve()  # the import system may know the file by another spelling
    frames = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    lines = [line for path, line in frames if path.name == file.name and path.resolve() == own]
    return f"{file}:{lines[-1]}" if lines else str(file)
