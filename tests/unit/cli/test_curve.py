"""`indexshare curve`: rows of a run, running or finished, as a table, CSV and picture."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECORDS = [
    {"step": 0, "stage": "a", "held_out_bits_per_byte": 5.0},
    {"step": 1, "stage": "a", "loss": 4.0, "tokens": 128.0, "tokens_per_second": 1000.0},
    {"step": 2, "stage": "a", "loss": 3.0, "tokens": 256.0, "tokens_per_second": 2000.0},
    {"step": 2, "stage": "a", "held_out_bits_per_byte": 2.5},
    {"step": 3, "stage": "b", "loss": 2.0, "indexer_loss": 0.5, "tokens": 384.0, "tokens_per_second": 500.0},
    {"step": 3, "stage": "b", "held_out_bits_per_byte": 2.0},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that was killed in the middle of a line."""
    (tmp_path / "toy").mkdir()
    lines = [json.dumps(record) for record in RECORDS]
    (tmp_path / "toy" / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 4, "sta')
    return tmp_path / "toy"


def test_rows_average_what_lies_between_evaluations(run: Callable[..., Any], folder: Path) -> None:
    result = run("curve", folder, "--json")
    assert json.loads(result.out) == {
        "runs": {
            "toy": [
                {"stage": "a", "step": 0, "tokens": 0, "held_out_bits_per_byte": 5.0},
                {
                    "stage": "a", "step": 2, "tokens": 256, "held_out_bits_per_byte": 2.5, "loss": 3.5,
                    "tokens_per_second": 1500.0,
                },
                {
                    "stage": "b", "step": 3, "tokens": 384, "held_out_bits_per_byte": 2.0, "loss": 2.0,
                    "indexer_loss": 0.5, "tokens_per_second": 500.0,
                },
            ]
        }
    }  # fmt: skip


def test_a_table_and_files(run: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    result = run("curve", folder, "--out", tmp_path / "c.csv", "--out", tmp_path / "c.png")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "toy" and lines[1].split()[:3] == ["stage", "step", "tokens"]
    assert lines[-1].split() == ["b", "3", "384", "2.0000", "2.0000", "0.5000", "500"]
    with (tmp_path / "c.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["indexer_loss"] for row in rows] == ["", "", "0.5"]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert f"wrote {tmp_path / 'c.png'}" in result.err


def test_several_runs_in_one_picture(run: Callable[..., Any], folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "deep" / "toy"
    other.mkdir(parents=True)
    (other / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes())
    result = run("curve", folder, other, "--out", tmp_path / "both.svg", "--json")
    assert list(json.loads(result.out)["runs"]) == [str(folder), str(other)]
    assert (tmp_path / "both.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "nothing is no run: there is no metrics.jsonl; give the folder that `indexshare train` wrote"),
        (("toy", "toy"), "a run is given twice"),
        (("toy", "--out", "c.gif"), "expected a name that ends in one of .png, .svg, .pdf"),
        (("toy", "--out", "no/c.png"), "does not exist; create it first"),
        (("toy", "empty", "--out", "c.csv"), "c.csv is a table, which is of one run"),
        (("empty",), "has no evaluation on held-out text yet"),
    ],
)
def test_mistakes(
    run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("empty").mkdir()
    Path("empty/metrics.jsonl").write_text("")
    result = run("curve", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
