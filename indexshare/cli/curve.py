"""`indexshare curve`: how a run learned, as a table, a CSV file or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from indexshare.cli.output import console, note, print_json, print_table
from indexshare.text.files import check_can_write

_FIGURES = {
    "held_out_bits_per_byte": "held-out bits/byte",
    "loss": "loss",
    "draft_loss": "draft loss",
    "indexer_loss": "indexer loss",
    "tokens_per_second": "tokens/s",
}


def curve(
    run: Path,
    /,
    *more: Path,
    out: Annotated[tuple[Path, ...], Parameter(name=["--out", "-o"], negative="", show_default=False)] = (),
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Show the learning curve of a training run: held-out bits per byte and losses by tokens trained.

    The run may still be going on.

    Parameters
    ----------
    run
        Folder of a run, such as runs/nano.
    more
        Other runs to put beside it.
    out
        Write this file: a picture (png, svg or pdf; needs matplotlib), or a table (csv) of one run. May be given
        several times.
    json
        Print one JSON object instead of tables.
    """
    from indexshare.eval.plots import check_picture
    from indexshare.train.curve import curve_rows, draw_curves, write_csv

    runs = [run, *more]
    for file in out:
        check_can_write(file)
        if file.suffix.lower() != ".csv":
            check_picture(file)
        elif more:
            raise ValueError(f"{file} is a table, which is of one run; give the runs one by one, or a picture")
    names = _names(runs)
    rows = {name: curve_rows(folder) for name, folder in zip(names, runs, strict=True)}
    for file in out:
        if file.suffix.lower() == ".csv":
            write_csv(rows[names[0]], file)
        else:
            draw_curves(rows, file)
        note(f"wrote {file}")
    if json:
        print_json({"runs": rows})
        return
    for name, found in rows.items():
        columns = [key for key in _FIGURES if any(key in row for row in found)]
        cells = [
            [row["stage"], f"{row['step']:,}", f"{row['tokens']:,}", *(_cell(row.get(key)) for key in columns)]
            for row in found
        ]
        heads = ["stage", "step", "tokens", *(_FIGURES[key] for key in columns)]
        print_table(name, heads, cells, to=console())


def _names(runs: list[Path]) -> list[str]:
    """The folders' own names; where two are called alike, their paths."""
    short = [folder.resolve().name for folder in runs]
    if len(set(short)) == len(short):
        return short
    paths = [str(folder) for folder in runs]
    if len(set(paths)) != len(paths):
        raise ValueError("a run is given twice; give each once")
    return paths


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.4f}"
