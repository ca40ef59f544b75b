"""Recipes: all of the repository load and are consistent, and what cannot work is refused before it starts."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from indexshare import load_model
from indexshare.config import ModelConfig, SharePlan
from indexshare.config.shipped import shipped_models
from indexshare.data.corpus import TextFolder
from indexshare.data.packages import PackageText
from indexshare.data.sources import source_names
from indexshare.planner.memory import count_parameters
from indexshare.text.fill import learned_fill
from indexshare.text.tokenizer import Tokenizer
from indexshare.train.loop import run
from indexshare.train.objectives import Balance, Draft, Indexer, NextToken, Progress
from indexshare.train.optim import OptimConfig, Schedule
from indexshare.train.recipe import Recipe, load_recipe, missing_ancestor, start_directory
from indexshare.train.stages import Stage, index_share, indexer_warmup, pretrain, sparse

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*.py") if not path.stem.startswith("rl_"))
NANO_BYTES = 25_000_000


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_load_and_are_consistent(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name.replace("-", "_") == path.stem
    assert recipe == load_recipe(path)
    stages = recipe.stages
    first_sparse = next(i for i, s in enumerate(stages) if s.attention == "sparse")
    warmups = [i for i, s in enumerate(stages) if not s.trains("trunk")]
    if recipe.start is None:
        assert stages[0].attention == "full" and stages[0].trains("trunk")
        assert warmups and max(warmups) < first_sparse, "indexers must learn before their choice is used"
    # Indexers go on learning with the trunk they choose for; where it stands still, so do they.
    assert all(s.attention == "sparse" and s.trains("indexer") >= s.trains("trunk") for s in stages[first_sparse:])
    assert recipe.stage_model(stages[-1]) == recipe.model, "the last stage must train the final share plan"
    lengths = [s.sequence_length for s in stages]
    assert lengths == sorted(lengths)
    assert lengths[-1] > recipe.model.index_topk, "the last stage must see contexts beyond index_topk"
    for stage in stages:
        assert stage.rows * stage.sequence_length == stage.batch_tokens
        assert 1 <= stage.micro_rows <= stage.rows and stage.steps >= 2
        assert stage.steps * stage.batch_tokens - stage.tokens < stage.batch_tokens
        factors = [stage.schedule.factor(step, stage.steps) for step in range(stage.steps)]
        assert all(0 < f <= 1 for f in factors)
        draft = stage.objective(Draft)
        drafts = [draft is not None and draft.draft_steps(Progress(step, stage.steps), recipe.model) > 0
                  for step in range(stage.steps)]  # fmt: skip
        assert drafts == sorted(drafts), "once on, the draft loss stays on"
    if recipe.model.num_nextn_predict_layers:
        draft = stages[-1].objective(Draft)
        assert draft is not None and draft.after == 0, "the draft layer must be trained on the final model"


def test_nano_and_its_twin_differ_in_sharing_alone() -> None:
    nano, twin = (load_recipe(ROOT / "recipes" / f"{name}.py") for name in ("nano", "nano_dsa"))
    assert twin.start == "runs/nano/stages/sparse" and nano.keep == ("sparse",)
    assert not twin.model.share_plan.shared_layers
    assert twin.model == nano.model.replace(indexer_types=twin.model.share_plan.types)
    shared = [stage for stage in nano.stages if stage.plan is not None]
    assert twin.stages_before + len(shared) == len(nano.stages)
    assert nano.stages[-len(shared) - 1].name == "sparse"
    for ours, theirs in zip(shared, twin.stages, strict=True):
        indexer = ours.objective(Indexer)
        assert indexer is not None and indexer.target == "served"
        assert theirs == replace(ours, name=theirs.name, plan=None).learning(replace(indexer, target="own"))


def test_nano_is_small_enough_to_ship() -> None:
    recipe = load_recipe(ROOT / "recipes" / "nano.py")
    assert 2 * count_parameters(recipe.model).total <= NANO_BYTES
    assert recipe.model.share_plan.full_layers == (0, 1, 2, 6, 10)


def test_nano_learns_forms_and_gaps_from_nothing() -> None:
    recipe = load_recipe(ROOT / "recipes" / "nano.py")
    assert recipe.start is None and recipe.dtype == "auto"
    first, *others = recipe.stages
    assert first.layers == 3 and set(range(3)) <= set(recipe.model.share_plan.full_layers)
    assert all(stage.weights["fill"] >= 0.1 and stage.weights["lookup"] > 0 for stage in recipe.stages)
    assert all(stage.weights["forms"] >= 0.1 for stage in others), "rows of 256 are too short for them"
    assert recipe.stages[-1].averaged > 0
    text = recipe.text
    assert isinstance(text, PackageText) and text.descriptions
    names = {package.name for package in text.packages}
    assert "typer" not in names and names.isdisjoint(package.name for package in text.whole)


def test_a_rehearsal_of_nano(sources: Path, model_config: ModelConfig, tmp_path: Path) -> None:
    """An update of every stage with a tiny model and short rows: what would fail hours into the run."""
    recipe = load_recipe(ROOT / "recipes" / "nano.py")
    stages = tuple(_rehearsed(stage, model_config) for stage in recipe.stages)
    text = TextFolder(path=str(sources), held_out=0.2)
    small = replace(recipe, model=model_config, text=text, stages=stages, held_out_windows=1, keep=())
    folder = run(small, tmp_path, quiet=True)
    assert folder is not None and load_model(folder).plan == model_config.share_plan
    assert learned_fill(Tokenizer.load(folder)) is not None
    record = json.loads((folder / "training.json").read_text())
    assert record["seed"] == 0 and len(record["data"]["data_hash"]) == 64 and len(record["stages"]) == len(stages)


def _rehearsed(stage: Stage, model: ModelConfig) -> Stage:
    length = max(32, stage.sequence_length // 32)
    return replace(
        stage, tokens=length, sequence_length=length, batch_tokens=length, micro_tokens=length,
        position_reach=min(stage.position_reach, model.max_position_embeddings),
        plan=None if stage.plan is None else model.share_plan,
    )  # fmt: skip


def test_tiny_runs_from_end_to_end(tmp_path: Path) -> None:
    """One update of every stage of the recipe that the documentation shows."""
    recipe = load_recipe(ROOT / "recipes" / "tiny.py").scaled(1e-9)
    assert [stage.steps for stage in recipe.stages] == [1] * 4
    folder = run(recipe, tmp_path, quiet=True)
    assert folder is not None
    assert load_model(folder).plan == recipe.model.share_plan


def test_a_shipped_model_is_a_start(make_recipe: Callable[..., Recipe], monkeypatch: Any, tmp_path: Path) -> None:
    recipe = make_recipe(start="pico", ancestor="recipes/pico.py")
    assert missing_ancestor(recipe) is None and start_directory(recipe) == shipped_models()["pico"]
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert start_directory(make_recipe(start="~/mine")) == tmp_path / "mine"
    nothing = make_recipe(start="pica", ancestor="recipes/pico.py")
    assert missing_ancestor(nothing) == "recipes/pico.py"
    with pytest.raises(ValueError, match=r"starts from pica, where .*or start from a shipped model \(nano, pico\)"):
        start_directory(nothing)


def test_a_part_of_a_run() -> None:
    stage = pretrain(tokens=1000, sequence_length=50, batch_tokens=100)
    assert [stage.scaled(part).steps for part in (1.0, 0.5, 0.01)] == [10, 5, 1]


def test_usual_stages_are_what_their_names_say() -> None:
    shape: dict[str, Any] = {"tokens": 64, "sequence_length": 32, "batch_tokens": 64}
    plan = SharePlan.from_pattern("FS")
    kinds = [
        (s.name, s.attention, s.objectives, s.plan)
        for s in (pretrain(**shape), indexer_warmup(**shape), sparse(**shape), index_share(plan, **shape))
    ]
    assert kinds == [
        ("pretrain", "full", (NextToken(), Balance()), None),
        ("indexer_warmup", "full", (Indexer(keys="all", with_draft=True), Balance(rate=0.0)), None),
        ("sparse", "sparse", (NextToken(), Indexer(keys="selected"), Balance()), None),
        ("index_share", "sparse", (NextToken(), Indexer(keys="selected"), Balance()), plan),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"batch_tokens": 100}, "not a whole number of rows of 32"),
        ({"attention": "dense"}, r"attention is 'dense'; expected one of \('full', 'sparse'\)"),
        ({"objectives": ()}, r"objectives are \[\]; expected one that trains something"),
        ({"objectives": (Balance(),)}, r"objectives are \['Balance'\]; expected one that trains something"),
        ({"objectives": (NextToken(), NextToken(weight=2.0))}, "and one of each kind"),
        ({"objectives": NextToken()}, r"objectives is NextToken\(weight=1\.0\); expected a tuple, each Objective"),
        ({"objectives": (NextToken,)}, "expected a tuple, each Objective"),
        ({"position_reach": 31}, "position_reach is 31; expected 0 or at least the 32 tokens of a row"),
    ],
)
def test_stage_mistakes(changes: dict[str, Any], message: str) -> None:
    shape: dict[str, Any] = {"tokens": 64, "sequence_length": 32, "batch_tokens": 64}
    with pytest.raises(ValueError, match=message):
        pretrain(**(shape | changes))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Indexer(keys="tv"), r"Indexer: keys is 'tv'; expected one of \('all', 'selected'\)"),
        (lambda: Indexer(target="other"), "Indexer: target is 'other'"),
        (lambda: Indexer(stride=0), "Indexer has stride 0; expected at least 1"),
        (lambda: Draft(after=1.5), r"Draft has weight 0\.3 and after 1\.5"),
        (lambda: Draft(weight=-1.0), r"Draft has weight -1\.0"),
        (lambda: Draft(steps=0), "Draft has steps 0; expected at least 1"),
        (lambda: Balance(rate=-1.0), r"Balance has rate -1\.0; expected zero or more"),
    ],
)
def test_objective_mistakes(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_recipe_mistakes(make_recipe: Callable[..., Recipe], model_config: ModelConfig) -> None:
    recipe = make_recipe()
    first, warmup, dense, shared = recipe.stages

    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            replace(recipe, **changes)

    refused("expected one or more, with unique names", stages=())
    refused("expected one or more, with unique names", stages=(first, first))
    long = {"sequence_length": 8192, "batch_tokens": 8192}
    refused("rows over 8192 positions; the model's context is 4096", stages=(replace(first, **long),))
    far = replace(first, position_reach=5000)
    refused("rows over 5000 positions; the model's context is 4096", stages=(far,))
    refused(r"expected weights of \('text', 'renamed', ", stages=(replace(first, mixture={"texts": 1.0}),))
    refused("one positive", stages=(replace(first, mixture={"text": 0.0}),))
    refused("one positive", stages=(replace(first, mixture={}),))
    refused(r"keeps stages \['last'\]; it has \['pretrain'", keep=("sparse", "last"))
    refused(r"Full layers \[3\] whose indexers an earlier stage dropped", stages=(first, shared, warmup, dense))
    refused("32 draft steps, which need rows of more", stages=(first.learning(Draft(steps=32)),))
    refused("the model lacks", model=model_config.replace(num_nextn_predict_layers=0))
    refused("num_hidden_layers is 4", stages=(replace(shared, plan=SharePlan.from_pattern("FFS")),))


def test_files_that_are_no_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"none\.py does not exist; give a Python file"):
        load_recipe(tmp_path / "none.py")
    with pytest.raises(ValueError, match="is a folder; give a Python file"):
        load_recipe(tmp_path)
    (tmp_path / "README.md").write_text("# not Python\n")
    with pytest.raises(ValueError, match=r"README\.md is not a Python file"):
        load_recipe(tmp_path / "README.md")
    for text, message in (
        ("x = 1\ny = (\n", r"wrong\.py:2: SyntaxError"),
        ("def recipe():\n    a = 1\n    return a / 0\n", r"wrong\.py:3: ZeroDivisionError: division by zero"),
        ("import no_such_module\n", r"wrong\.py:1: ModuleNotFoundError: No module named 'no_such_module'"),
    ):
        (tmp_path / "wrong.py").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_recipe(tmp_path / "wrong.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helper.py").write_text("\n\nx = = 1\n")
    for text, message in (
        ("\nint('x')\n", r"^wrong\.py:2: invalid literal for int"),
        ("\n\n1 / 0\n", r"^wrong\.py:3: ZeroDivisionError"),
        ("\nx = (\n", r"wrong\.py:2: SyntaxError"),
        ("\n\nimport helper\n", r"helper\.py:3: SyntaxError"),
        (
            "from indexshare.train.stages import pretrain\ndef recipe():\n"
            "    return pretrain(\n        tokens='1000', sequence_length=32, batch_tokens=64)\n",
            r"wrong\.py:3: stage 'pretrain': tokens is '1000'; expected a whole number; leave out the quotes",
        ),
    ):
        (tmp_path / "wrong.py").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_recipe(Path("wrong.py"))
    for text in ("x = 1\n", "recipe = 3\n", "def recipe():\n    return 3\n"):
        (tmp_path / "bad.py").write_text(text)
        with pytest.raises(ValueError, match="no function `recipe`"):
            load_recipe(tmp_path / "bad.py")


def test_every_field_is_explained() -> None:
    text = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
    kinds = (Recipe, Stage, TextFolder, PackageText, OptimConfig, Schedule, NextToken, Draft, Indexer, Balance)
    for kind in kinds:
        missing = [field.name for field in fields(kind) if f"`{field.name}`" not in text]
        assert missing == [], kind.__name__
    assert [name for name in source_names() if f"`{name}`" not in text] == []


def test_the_recipe_in_the_documentation_loads(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "finetune.md").read_text(encoding="utf-8")
    (tmp_path / "notes.py").write_text(text.split("```python\n")[1].split("```")[0])
    recipe = load_recipe(tmp_path / "notes.py")
    assert start_directory(recipe) == shipped_models()["pico"]
    assert recipe.stage_model(recipe.stages[0]) == recipe.model
