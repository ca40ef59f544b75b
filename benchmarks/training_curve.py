"""The curve of a training run: a small CSV and one picture, from the run's metrics.jsonl.

    python benchmarks/training_curve.py runs/nano --out docs/curves/nano

Writes OUT.csv (one row per held-out evaluation: stage, step, tokens, training loss averaged since the last one,
held-out bits per byte) and OUT.png. Needs matplotlib (extra `plots`).
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any


def rows_of(run: Path) -> list[dict[str, Any]]:
    """One row per evaluation, in order."""
    rows: list[dict[str, Any]] = []
    since: dict[str, list[float]] = {}
    tokens = 0.0
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "held_out_bits_per_byte" not in record:
            tokens = record["tokens"]
            for key in ("loss", "draft_loss", "indexer_loss", "tokens_per_second"):
                if key in record:
                    since.setdefault(key, []).append(record[key])
            continue
        means = {key: sum(values) / len(values) for key, values in since.items()}
        row = {"stage": record["stage"], "step": record["step"], "tokens": int(tokens)}
        row |= {"held_out_bits_per_byte": round(record["held_out_bits_per_byte"], 4)}
        rows.append(row | {key: round(value, 4) for key, value in means.items()})
        since = {}
    return rows


def draw(rows: list[dict[str, Any]], file: Path, title: str) -> None:
    """Held-out bits per byte against tokens, one colour per stage."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for stage in dict.fromkeys(row["stage"] for row in rows):
        part = [row for row in rows if row["stage"] == stage]
        millions = [row["tokens"] / 1e6 for row in part]
        axes.plot(millions, [row["held_out_bits_per_byte"] for row in part], marker="o", markersize=3, label=stage)
    axes.set(xlabel="training tokens (millions)", ylabel="held-out bits per byte", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    """Write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = rows_of(arguments.run)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with arguments.out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, arguments.out.with_suffix(".png"), arguments.run.name)


if __name__ == "__main__":
    main()
