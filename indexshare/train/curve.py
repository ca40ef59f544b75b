"""The learning curve of a run, from its `metrics.jsonl`: one row per held-out evaluation, as a table or a picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from indexshare.text.files import replacing
from indexshare.train.progress import METRICS_FILE

TRAINED = ("loss", "draft_loss", "indexer_loss", "tokens_per_second")  # averaged between two evaluations
Row = dict[str, Any]


def curve_rows(run: str | Path) -> list[Row]:
    """Rows of a run, in order.

    Each has `stage`, `step`, `tokens` (trained so far), `held_out_bits_per_byte`, and the means since the row before of
    those of `TRAINED` that were measured. A line that a kill cut short is passed over.

    Args:
        run: the run's folder, also while it goes on, or a metrics file.

    Raises:
        ValueError: no metrics there, or no evaluation among them.
    """
    path = Path(run)
    file = path / METRICS_FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{run} is no run: there is no {METRICS_FILE}; give the folder that `indexshare train` wrote")
    rows: list[Row] = []
    since: dict[str, list[float]] = {}
    tokens = 0.0
    for record in _records(file):
        if "held_out_bits_per_byte" not in record:
            tokens = record.get("tokens", tokens)
            for key in TRAINED:
                if key in record:
                    since.setdefault(key, []).append(record[key])
            continue
        means = {key: round(sum(values) / len(values), 4) for key, values in since.items()}
        row = {"stage": record["stage"], "step": record["step"], "tokens": int(tokens)}
        rows.append(row | {"held_out_bits_per_byte": round(record["held_out_bits_per_byte"], 4)} | means)
        since = {}
    if not rows:
        raise ValueError(
            f"{file} has no evaluation on held-out text yet; the first comes after `evaluate_every` updates"
        )
    return rows


def _records(file: Path) -> list[dict[str, Any]]:
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"stage", "step"} <= record.keys():
            found.append(record)
    return found


def write_csv(rows: Sequence[Row], file: Path) -> None:
    """The rows as a table with a header; empty where a row has no such figure."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def draw_curves(runs: Mapping[str, Sequence[Row]], file: Path) -> None:
    """Held-out bits per byte against tokens: one run with a colour per stage, or several with a colour each.

    Needs matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    (title, first), *others = runs.items()
    lines = dict(runs)
    if not others:
        stages = dict.fromkeys(row["stage"] for row in first)
        lines = {stage: [row for row in first if row["stage"] == stage] for stage in stages}
    for label, rows in lines.items():
        tokens = [row["tokens"] / 1e6 for row in rows]
        axes.plot(tokens, [row["held_out_bits_per_byte"] for row in rows], marker="o", markersize=3, label=label)
    axes.set(xlabel="training tokens (millions)", ylabel="held-out bits per byte", title="" if others else title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=110)
