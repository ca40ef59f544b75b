"""`complete` with files from one run to the next, and `cache`, which shows and removes them."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from indexshare.config.environment import prefix_directory

Run = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "indexshare" / "prefixes"


def written() -> None:
    """What a process does at its end: wait for the thread that writes."""
    for thread in threading.enumerate():
        if thread.name == "prefixes to files":
            thread.join()


def completed(run: Run, place: object, model: Path, *options: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        run("complete", place, "--model", model, "--max-tokens", 4, "--json", *options).out
    )
    written()
    return found


def test_a_second_completion_begins_with_the_first_ones_context(
    run: Run, model_dir: Path, source_dir: Path, home: Path
) -> None:
    place = source_dir / "main.py"
    cold = completed(run, place, model_dir, "--no-cache-dir")
    assert not home.exists() and cold["stats"]["cached_tokens"] == 0
    first = completed(run, place, model_dir)
    again = completed(run, place, model_dir)
    assert first["text"] == again["text"] == cold["text"]
    assert first["stats"]["cached_tokens"] == 0
    whole = (again["stats"]["prompt_tokens"] - 17) // 64 * 64
    assert again["stats"]["cached_tokens"] == whole > 1000
    place.write_text(place.read_text().replace("double(2)", "double(1) + double(1)"))
    edited = completed(run, place, model_dir)
    others = edited["stats"]["prompt_tokens"] - edited["files"][-1]["tokens"]
    assert others // 64 * 64 <= edited["stats"]["cached_tokens"] <= whole
    assert edited["text"] == completed(run, place, model_dir, "--no-cache-dir")["text"]
    streamed = run("complete", place, "--model", model_dir, "--max-tokens", 4)
    assert "of them from the cache; prefill" in streamed.err


def test_cache_shows_and_clears(run: Run, model_dir: Path, source_dir: Path, home: Path) -> None:
    empty = json.loads(run("cache", "--json").out)
    assert empty == {"folder": str(home), "bytes": 0, "models": [], "cleared": False}
    assert run("cache").err == f"nothing is kept in {home}\n"
    facts = completed(run, source_dir / "main.py", model_dir)
    shown = json.loads(run("cache", "--json").out)
    [model] = shown["models"]
    blocks = facts["stats"]["prompt_tokens"] // 64
    assert (model["model"], model["dtype"], model["blocks"]) == (str(model_dir), "float32", blocks)
    assert shown["bytes"] == model["bytes"] == sum(file.stat().st_size for file in home.rglob("*.block"))
    assert model["oldest"] <= model["newest"]
    table = run("cache").out
    assert str(model_dir) in table and f"{blocks * 64:,}" in table
    next(home.iterdir()).joinpath("about.json").write_text("{")
    assert "unknown" in run("cache").out
    assert f"{blocks} blocks" in run("cache", "--clear").err
    assert list(home.iterdir()) == []
    assert completed(run, source_dir / "main.py", model_dir)["stats"]["cached_tokens"] == 0


def test_a_folder_of_ones_own_with_a_limit(run: Run, model_dir: Path, source_dir: Path, home: Path) -> None:
    own = source_dir.parent / "own"
    options = ("--cache-dir", own, "--cache-dir-gib", 1e-4)
    completed(run, source_dir / "main.py", model_dir, *options)
    assert not home.exists()
    held = json.loads(run("cache", "--cache-dir", own, "--json").out)["bytes"]
    assert 0 < held <= 1e-4 * 2**30
    spared = completed(run, source_dir / "main.py", model_dir, *options)["stats"]["cached_tokens"]
    assert 0 < spared < 1000, "the beginning is what stays"
    text = ("generate", "def f(x):\n" * 40, "--model", model_dir, "--max-tokens", 2, "--json", "--cache-dir", own)
    assert json.loads(run(*text).out)["completions"][0]["stats"]["cached_tokens"] == 0
    written()
    assert json.loads(run(*text).out)["completions"][0]["stats"]["cached_tokens"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cache-dir", "here", "--no-cache-dir"), "--no-cache-dir and --cache-dir here contradict each other"),
        (("--cache-dir-gib", -1), "--cache-dir-gib is -1; expected a number of GiB, 0 or more"),
        (("--cache-dir-gib", "nan"), "--cache-dir-gib is nan"),
        (("--cache-dir", "main.py"), "which is a file; expected a folder"),
    ],
)
def test_refusals(
    run: Run,
    model_dir: Path,
    source_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(source_dir)
    result = run("complete", "main.py", "--model", model_dir, "--max-tokens", 4, *options)
    assert (result.code, result.out) == (2, "") and message in result.err
    assert run("cache", "--cache-dir", source_dir / "main.py").code == 2


def test_where_the_users_cache_is(tmp_path: Path) -> None:
    home = Path.home() / ".cache" / "indexshare" / "prefixes"
    assert prefix_directory({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "indexshare" / "prefixes"
    for useless in ({}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": f"relative{os.sep}folder"}):
        assert prefix_directory(useless) == home
