"""`nano`: the small model that ships with the package, trained from nothing.

The standard library and the sources, tests and descriptions of the installed dependencies; rows that ask for planted
facts in many forms, rows with a gap in the middle, and lookups, in every stage that learns from text. The first layers
learn alone before the others join, then indexers for every layer, sparse attention, and sharing in rows of 4K, 8K and
16K.
"""

from __future__ import annotations

from indexshare.config.presets import preset
from indexshare.config.share_plan import SharePlan
from indexshare.data.corpus import library_text
from indexshare.data.packages import Package, PackageText
from indexshare.train.objectives import Balance, Draft, Indexer, NextToken
from indexshare.train.optim import OptimConfig, Schedule
from indexshare.train.recipe import Recipe
from indexshare.train.stages import Stage, index_share, indexer_warmup, pretrain, sparse

K = 1024
REACH = 32 * K  # rows are shorter than the context; stretched positions show the model its far distances
# In which layer a small model finds out how to copy is a matter of luck, and what a Shared layer looks up, an indexer
# below must have been able to know. So the first Full layers learn it alone (docs/LOG.md, 2026-11-21).
FIRST = 3
# Forms need rows of 512 tokens and more. Lookups in rows of every length: what a table of a thousand entries needs is
# not learned on one of two hundred.
SHORT_TEXT = {"text": 0.82, "fill": 0.1, "lookup": 0.08}
MIDDLE_TEXT = {"text": 0.56, "repeated": 0.06, "renamed": 0.04, "forms": 0.12, "fill": 0.14, "lookup": 0.08}
LONG_TEXT = {"text": 0.36, "repeated": 0.1, "forms": 0.22, "fill": 0.14, "lookup": 0.18}
PEAK = OptimConfig(muon_lr=4e-3, adam_lr=4e-3)
LATE = OptimConfig(muon_lr=1.6e-3, adam_lr=1.6e-3, indexer_lr=3e-3)
LAST = OptimConfig(muon_lr=8e-4, adam_lr=8e-4, indexer_lr=1.5e-3)
END = OptimConfig(muon_lr=4e-4, adam_lr=4e-4, indexer_lr=7.5e-4)

# Without typer, which carries click in a form of its own.
PACKAGES = (
    "annotated-types",
    "anyio",
    "attrs",
    "babel",
    "charset-normalizer",
    "colorama",
    "contourpy",
    "cycler",
    "cyclopts",
    "docstring_parser",
    "execnet",
    "filelock",
    "fonttools",
    "fsspec",
    "gguf",
    "h11",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "huggingface_hub",
    "iniconfig",
    "Markdown",
    "matplotlib",
    "mkdocs",
    "mypy",
    "numpy",
    "packaging",
    "pillow",
    "platformdirs",
    "pluggy",
    "prometheus_client",
    "pydantic",
    "Pygments",
    "pymdown-extensions",
    "pyparsing",
    "pytest",
    "pytest-xdist",
    "python-dateutil",
    "PyYAML",
    "rich",
    "rich-rst",
    "safetensors",
    "setuptools",
    "sortedcontainers",
    "starlette",
    "sympy",
    "typing_extensions",
    "urllib3",
    "uvicorn",
    "watchdog",
)
TESTED = ("mpmath", "networkx")  # packages whose tests are read too
# Of the largest, the folders that read like a library; of transformers, no models, which are copies of each other.
PARTS = (
    Package(name="torch", folders=tuple(f"torch/{part}" for part in ("nn", "optim", "utils", "distributions", "fx"))),
    Package(
        name="transformers",
        folders=tuple(f"transformers/{part}" for part in ("data", "generation", "loss", "pipelines", "utils")),
    ),
)
# Held out as whole packages, so that what the model knows of them comes from the context alone.
HELD_OUT = ("click", "Jinja2", "requests", "markdown-it-py")


def recipe() -> Recipe:
    """All stages, from nothing. Stop and resume at will."""
    model = preset("nano")
    return Recipe(
        name="nano",
        model=model,
        text=text(),
        stages=(*full_stages(), *sparse_stages(model.share_plan)),
        seed=0,
        keep=("sparse",),
        evaluate_every=100,
    )


def text() -> PackageText:
    """The standard library and the packages that `constraints.txt` installs, with what they say of themselves."""
    packages = (
        *(Package(name=name) for name in PACKAGES),
        *(Package(name=name, tests=True) for name in TESTED),
        *PARTS,
    )
    return PackageText(
        base=library_text(),
        packages=packages,
        whole=tuple(Package(name=name) for name in HELD_OUT),
        suffixes=(".py", ".md", ".rst"),
        descriptions=True,
    )


def full_stages() -> tuple[Stage, ...]:
    """Full attention: short rows with the first layers alone, longer ones with all, and the indexers' warm-up."""
    return (
        pretrain(
            name="pretrain_short",
            layers=FIRST,
            tokens=6_000 * K,
            sequence_length=256,
            batch_tokens=8 * K,
            micro_tokens=2 * K,
            mixture=SHORT_TEXT,
            objectives=(NextToken(), Balance(rate=1e-2)),
            optim=PEAK,
            schedule=Schedule(kind="constant", warmup=0.03),
        ),
        pretrain(
            tokens=8_192 * K,
            sequence_length=1 * K,
            batch_tokens=8 * K,
            micro_tokens=2 * K,
            mixture=MIDDLE_TEXT,
            position_reach=REACH,
            objectives=(NextToken(), Draft(after=0.5), Balance(rate=3e-3)),
            optim=PEAK,
            schedule=Schedule(kind="wsd", warmup=0.02, decay=0.6, final=0.4),
        ),
        indexer_warmup(
            tokens=384 * K,
            sequence_length=2 * K,
            batch_tokens=8 * K,
            micro_tokens=2 * K,
            mixture=MIDDLE_TEXT,
            position_reach=REACH,
            objectives=(Indexer(keys="all", stride=4, with_draft=True), Balance(rate=0.0)),
            optim=OptimConfig(indexer_lr=5e-3),
        ),
    )


def sparse_stages(plan: SharePlan) -> tuple[Stage, ...]:
    """Top-k attention with every layer Full, then IndexShare in rows of three lengths."""
    return (
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
        _shared(plan, 4 * K, tokens=1_024 * K, batch_tokens=8 * K, optim=LATE, warmup=0.03, final=0.5),
        _shared(plan, 8 * K, tokens=2_048 * K, batch_tokens=16 * K, optim=LAST, warmup=0.0, final=0.5),
        _shared(plan, 16 * K, tokens=3_072 * K, batch_tokens=32 * K, optim=END, warmup=0.0, final=0.1, averaged=0.2),
    )


def _shared(
    plan: SharePlan, length: int, *, tokens: int, batch_tokens: int, optim: OptimConfig, warmup: float, final: float,
    averaged: float = 0.0,
) -> Stage:  # fmt: skip
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
        averaged=averaged,
    )
