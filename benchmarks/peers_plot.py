"""The picture of a comparison made by `peers.py`: time against context length, every program at its fastest setting.

python benchmarks/peers_plot.py benchmarks/results/2026-11-21-peers.json docs/peers.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

COLOURS = {"indexshare": "#1f6fb4", "transformers": "#e07b00", "llama.cpp": "#3b8f3b"}
PANELS = (
    ("prefill_s", "Time to read a prompt", "seconds"),
    ("decode_ms", "Time to write one token after it", "milliseconds"),
)


def lines_of(report: dict[str, Any], figure: str) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """By program, the spread of its fastest setting at every length, in order; lengths of 0 are left out."""
    found: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for result in report["results"]:
        for program, spread in result["best"][figure].items():
            if result["length"]:
                found.setdefault(program, []).append((result["length"], spread))
    return found


def draw(report: dict[str, Any], file: Path) -> None:
    """Two panels, both axes logarithmic, lines named where they end. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, (name, title, unit) in zip(axes, PANELS, strict=True):
        lengths = [result["length"] for result in report["results"] if result["length"]]
        for program, points in lines_of(report, name).items():
            _line(axis, program, points, lengths[-1])
        _ticks(axis, title, unit, lengths)
    machine = report["machine"]
    figure.supxlabel(
        f"tokens of context    (same weights, {machine['processor']}, {machine['cores']} cores, {report['date'][:10]})",
        fontsize="medium",
    )
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def _line(axis: Any, program: str, points: list[tuple[int, dict[str, Any]]], longest: int) -> None:
    """One program: medians with their ranges, its name and last value at its end (above it, where it ends early)."""
    ours = program == "indexshare"
    middle = [spread["median"] for _, spread in points]
    below = [spread["median"] - spread["low"] for _, spread in points]
    above = [spread["high"] - spread["median"] for _, spread in points]
    lengths = [length for length, _ in points]
    style = {"color": COLOURS.get(program), "marker": "o", "markersize": 5, "capsize": 2}
    axis.errorbar(lengths, middle, yerr=(below, above), linewidth=3 if ours else 1.6, **style)
    place = {"xytext": (9, 0), "va": "center"} if lengths[-1] == longest else {"xytext": (-4, 8), "ha": "right"}
    axis.annotate(
        f"{program}\n{middle[-1]:.3g}",
        (lengths[-1], middle[-1]),
        textcoords="offset points",
        color=COLOURS.get(program),
        fontweight="bold" if ours else "normal",
        **place,
    )


def _ticks(axis: Any, title: str, unit: str, lengths: list[int]) -> None:
    """Plain numbers on logarithmic axes, and room on the right for the names of the lines."""
    axis.set(xscale="log", yscale="log", ylabel=unit)
    axis.set_title(title, fontweight="bold", loc="left")
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.minorticks_off()
    axis.set_ylim(top=2 * axis.get_ylim()[1])
    if lengths:
        axis.set_xlim(min(lengths) * 0.8, max(lengths) * 2.6)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw a report that was written before."""
    parser = argparse.ArgumentParser(description="draw the report of benchmarks/peers.py")
    parser.add_argument("report", type=Path, help="the JSON that --output wrote")
    parser.add_argument("picture", type=Path, help="png, svg or pdf")
    arguments = parser.parse_args()
    draw(json.loads(arguments.report.read_text(encoding="utf-8")), arguments.picture)


if __name__ == "__main__":
    main()
