"""`indexshare cache`: what is kept of prompts in files, and the way to remove it."""

from __future__ import annotations

import json as json_text
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from indexshare.cli.output import console, note, print_json, print_table, size
from indexshare.config.environment import prefix_directory
from indexshare.text.files import plural

if TYPE_CHECKING:
    from indexshare.cache.block_files import BlockFile


def cache(
    *,
    cache_dir: Path | None = None,
    clear: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Show what is kept of prompts in files, by model, or remove it.

    `complete` keeps what it reads, so that the next completion in the same tree starts with it; other verbs do with
    --cache-dir.

    Parameters
    ----------
    cache_dir
        The folder. Unless given, `indexshare/prefixes` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache).
    clear
        Remove the blocks of all models. A program that runs meanwhile computes again what it misses.
    json
        Print one JSON object instead of a table.
    """
    from indexshare.cache.block_files import remove_blocks

    folder = prefix_directory() if cache_dir is None else cache_dir
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder")
    models = describe(folder)
    held = sum(model["bytes"] for model in models)
    if clear:
        remove_blocks(folder)
    if json:
        print_json({"folder": str(folder), "bytes": held, "models": models, "cleared": clear})
    elif clear:
        blocks = plural(sum(model["blocks"] for model in models), "block")
        note(f"{blocks}, {size(held)}, removed from {folder}")
    else:
        _show(folder, held, models)


def describe(folder: Path) -> list[dict[str, Any]]:
    """Of every model with blocks in a folder: what it is, and how much is kept of it since when; largest first."""
    from indexshare.cache.block_files import block_files

    by_model: dict[Path, list[BlockFile]] = {}
    for file in block_files(folder):
        by_model.setdefault(file.path.parent, []).append(file)
    found = []
    for place, files in by_model.items():
        used = [file.used_ns / 1e9 for file in files]
        found.append(
            _about(place)
            | {
                "folder": place.name,
                "blocks": len(files),
                "bytes": sum(file.size for file in files),
                "oldest": _time(min(used)),
                "newest": _time(max(used)),
            }
        )
    return sorted(found, key=lambda model: (-model["bytes"], model["folder"]))


def _about(place: Path) -> dict[str, Any]:
    """What the process that began a model's folder said of it; the file is for people, so a broken one says nothing."""
    from indexshare.cache.block_files import ABOUT

    try:
        said = json_text.loads((place / ABOUT).read_text(encoding="utf-8"))
        return {"model": str(said["model"]), "dtype": str(said["dtype"]), "block_tokens": int(said["block_tokens"])}
    except (OSError, ValueError, LookupError, TypeError):
        return {"model": "unknown", "dtype": "", "block_tokens": None}


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _show(folder: Path, held: int, models: list[dict[str, Any]]) -> None:
    if not models:
        note(f"nothing is kept in {folder}")
        return
    rows = [
        (
            model["model"],
            model["dtype"],
            f"{model['blocks']:,}",
            f"{model['blocks'] * model['block_tokens']:,}" if model["block_tokens"] else "",
            size(model["bytes"]),
            model["oldest"],
            model["newest"],
        )
        for model in models
    ]
    columns = ("model", "type", "blocks", "tokens", "size", "longest unused", "last used")
    print_table(f"{size(held)} of prompts in {folder}", columns, rows, to=console(), text=(0, 1, 5, 6))
