"""`nano`: the small model that ships with the package, trained on the standard library and the installed dependencies.

Goes on from `nano-base` (`recipes/nano_base.py`), which learned the standard library alone, with text and lookups for
long rows. Every layer gets an indexer again before the model learns to share them anew.
"""

from __future__ import annotations

from pathlib import Path

from indexshare.config.presets import preset
from indexshare.config.share_plan import SharePlan
from indexshare.data.corpus import library_text
from indexshare.data.packages import Package, PackageText
from indexshare.train.objectives import Balance, Draft, Indexer, NextToken
from indexshare.train.optim import OptimConfig, Schedule
from indexshare.train.recipe import Recipe
from indexshare.train.stages import Stage, index_share, indexer_warmup, pretrain, sparse

K = 1024
# Lookups in rows of every length: what a table of a thousand entries needs is not learned on one of two hundred.
MIDDLE_TEXT = {"text": 0.88, "lookup": 0.12}
LONG_TEXT = {"text": 0.7, "lookup": 0.3}
REACH = 32 * K  # rows are shorter than the context; stretched positions show the model its far distances
AGAIN = OptimConfig(muon_lr=2.4e-3, adam_lr=2.4e-3)
LATE = OptimConfig(muon_lr=1.6e-3, adam_lr=1.6e-3, indexer_lr=3e-3)
LAST = OptimConfig(muon_lr=8e-4, adam_lr=8e-4, indexer_lr=1.5e-3)
END = OptimConfig(muon_lr=4e-4, adam_lr=4e-4, indexer_lr=7.5e-4)

PACKAGES = (
    "anyio",
    "attrs",
    "charset-normalizer",
    "cyclopts",
    "docstring_parser",
    "filelock",
    "fonttools",
    "fsspec",
    "gguf",
    "h11",
    "httpcore2",
    "httpx2",
    "huggingface_hub",
    "matplotlib",
    "mpmath",
    "mypy",
    "networkx",
    "numpy",
    "packaging",
    "pillow",
    "pluggy",
    "pydantic",
    "Pygments",
    "pyparsing",
    "pytest",
    "python-dateutil",
    "PyYAML",
    "rich",
    "rich-rst",
    "setuptools",
    "sortedcontainers",
    "sympy",
    "typer",
    "typing_extensions",
    "urllib3",
)
# Of the largest, the folders that read like a library; of transformers, no models, which are copies of each other.
PARTS = (
    Package(name="torch", folders=tuple(f"torch/{part}" for part in ("nn", "optim", "utils", "distributions", "fx"))),
    Package(
        name="transformers",
        folders=tuple(f"transformers/{part}" for part in ("data", "generation", "loss", "pipelines", "utils")),
    ),
)
# Held out as whole packages, so that what the model knows of them comes from the context alone. (Except for click:
# typer above carries a rewritten copy of it.)
HELD_OUT = ("click", "Jinja2", "requests", "markdown-it-py")


def recipe() -> Recipe:
    """All stages; an hour and a half on two cores. Stop and resume at will."""
    model = preset("nano")
    return Recipe(
        name="nano",
        model=model,
        text=text(),
        stages=stages(model.share_plan),
        seed=0,
        start="runs/nano-base/model",
        ancestor=Path(__file__).with_name("nano_base.py"),
        keep=("sparse",),
        evaluate_every=100,
    )


def text() -> PackageText:
    """The standard library and the sources of the packages that `constraints.txt` installs."""
    packages = (*(Package(name=name) for name in PACKAGES), *PARTS)
    return PackageText(base=library_text(), packages=packages, whole=tuple(Package(name=name) for name in HELD_OUT))


def stages(plan: SharePlan) -> tuple[Stage, ...]:
    """Full attention on the wider text, indexers for every layer, sparse with every layer Full, IndexShare."""
    return (
        pretrain(
            tokens=4_096 * K,
            sequence_length=1 * K,
            batch_tokens=8 * K,
            micro_tokens=2 * K,
            mixture=MIDDLE_TEXT,
            position_reach=REACH,
            objectives=(NextToken(), Draft(after=0.5), Balance(rate=3e-3)),
            optim=AGAIN,
            schedule=Schedule(kind="wsd", warmup=0.05, decay=0.6, final=0.6),
        ),
        indexer_warmup(
            tokens=384 * K,
            sequence_length=2 * K,
            batch_tokens=8 * K,
            micro_tokens=2 * K,
            position_reach=REACH,
            objectives=(Indexer(keys="all", stride=4, with_draft=True), Balance(rate=0.0)),
            optim=OptimConfig(indexer_lr=5e-3),
        ),
        sparse(
            tokens=1_024 * K,
            sequence_length=2 * K,
            batch_tokens=8 * K,
            micro_tokens=2 * K,
            position_reach=REACH,
            mixture=LONG_TEXT,
            objectives=(NextToken(), Draft(), Indexer(stride=8), Balance()),
            optim=LATE,
            schedule=Schedule(kind="constant", warmup=0.05),
        ),
        _shared(plan, 4 * K, tokens=768 * K, batch_tokens=8 * K, optim=LATE, warmup=0.03, final=0.5),
        _shared(plan, 8 * K, tokens=2_048 * K, batch_tokens=16 * K, optim=LAST, warmup=0.0, final=0.5),
        _shared(plan, 16 * K, tokens=3_072 * K, batch_tokens=32 * K, optim=END, warmup=0.0, final=0.1),
    )


def _shared(
    plan: SharePlan, length: int, *, tokens: int, batch_tokens: int, optim: OptimConfig, warmup: float, final: float
) -> Stage:
    """IndexShare in rows of one length."""
    draft = Draft(steps=1 if length < 8 * K else 2)
    indexer = Indexer(keys="all", target="served", stride=length // 128)
    return index_share(
        plan,
        name=f"index_share_{length // K}k",
        tokens=tokens,
        sequence_length=length,
        batch_tokens=batch_tokens,
        micro_tokens=length,
        position_reach=REACH,
        mixture=LONG_TEXT,
        objectives=(NextToken(), draft, indexer, Balance()),
        optim=optim,
        schedule=Schedule(kind="cosine", warmup=warmup, final=final),
    )
