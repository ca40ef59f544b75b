"""`indexshare models`: which models there are, in the package and in folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from indexshare.cli.output import console, note, print_json, print_table, size
from indexshare.config.model import ModelConfig
from indexshare.config.shipped import CONFIG_FILE, shipped_models
from indexshare.planner.memory import count_parameters

_DEEPEST = 4  # folders below the one that is searched
_MOST_FOLDERS = 5_000


def models(*folders: Path, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """List the models that come with the package, or those in a folder and below it. Nothing is loaded.

    Parameters
    ----------
    folders
        Where to look; the shipped models are listed unless a folder is given.
    json
        Print one JSON object instead of a table.
    """
    found = list[dict[str, Any]]()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is {'a file' if folder.exists() else 'not there'}; expected a folder to search")
        found += [describe(str(place), place) for place in search(folder)]
    if not folders:
        found = [describe(name, place) for name, place in shipped_models().items()]
    if json:
        print_json({"models": found})
        return
    if not found:
        note(f"no {CONFIG_FILE} in {', '.join(map(str, folders))} or below")
        return
    _show(found)


def search(folder: Path) -> Iterator[Path]:
    """Folders with a `config.json`: the one given and those below it, in order of their names.

    Hidden ones do not count. At most `_MOST_FOLDERS` are looked at, which is said when it ends the search.
    """
    for looked, (place, inner, files) in enumerate(os.walk(folder)):
        if looked == _MOST_FOLDERS:
            note(f"looked at {_MOST_FOLDERS:,} folders below {folder} and stopped; give a folder nearer to the models")
            return
        depth = len(Path(place).relative_to(folder).parts)
        inner[:] = sorted(name for name in inner if not name.startswith(".")) if depth < _DEEPEST else []
        if CONFIG_FILE in files:
            yield Path(place)


def describe(name: str, folder: Path) -> dict[str, Any]:
    """What a model is, from its configuration, card and files, as plain values; or why it cannot be read."""
    facts: dict[str, Any] = {"name": name, "path": str(folder)}
    try:
        config = ModelConfig.load(folder)
    except (ValueError, OSError) as error:
        return facts | {"error": " ".join(str(error).split())}
    weights = sorted(folder.glob("*.safetensors"))
    parameters = count_parameters(config)
    return facts | {
        "model_type": config.model_type,
        "parameters": parameters.total,
        "active": parameters.active,
        "context": config.max_position_embeddings,
        "dtype": config.dtype,
        "bytes": sum(file.stat().st_size for file in weights) if weights else None,
        "tokenizer": (folder / "tokenizer.json").is_file(),
        "description": first_sentence(folder / "README.md"),
    }


def first_sentence(card: Path) -> str | None:
    """What a model's card says first below its title; None without a card."""
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    paragraphs = (part.strip() for part in re.split(r"\n\s*\n", text))
    plain = next((part for part in paragraphs if part and part[0] not in "#|<!["), None)
    return None if plain is None else re.split(r"(?<=[.!?])\s", " ".join(plain.split()))[0]


def _show(found: list[dict[str, Any]]) -> None:
    rows, out = [], console()
    for facts in (facts for facts in found if "error" not in facts):
        weights = "no weights" if facts["bytes"] is None else size(facts["bytes"])
        text = "yes" if facts["tokenizer"] else "no"
        numbers = (f"{facts['parameters'] / 1e6:,.1f} M", f"{facts['active'] / 1e6:,.1f} M", f"{facts['context']:,}")
        rows.append((facts["name"], *numbers, facts["dtype"], weights, text))
    if rows:
        columns = ("model", "parameters", "used per token", "context", "dtype", "on disk", "tokenizer")
        print_table("Models", columns, rows, to=out)
    for facts in found:
        if facts.get("description"):
            out.print(f"\n{facts['name']}: {facts['description']}", soft_wrap=True)
        elif "error" in facts:
            note(f"{facts['path']} cannot be read: {facts['error']}")
