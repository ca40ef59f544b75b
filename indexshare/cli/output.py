"""How the command speaks: results on standard output, everything about them on standard error.

Tables are drawn for a terminal and plain text otherwise; `rich` itself honours NO_COLOR. With `--json` one
JSON object goes to standard output and nothing else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_CONTROL = dict.fromkeys({*range(0x20), 0x7F, *range(0x80, 0xA0)} - {ord("\n"), ord("\t")}, "\ufffd")


def console(*, stderr: bool = False) -> Console:
    """A console on the stream of this moment (tests replace it); no markup, colour only on a terminal."""
    return Console(file=sys.stderr if stderr else sys.stdout, highlight=False, markup=False, emoji=False)


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on standard output, indented, keys in the order given."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_pairs(title: str, pairs: Iterable[tuple[str, str]], *, to: Console) -> None:
    """A title and aligned `name  value` lines; on a terminal, long values are folded under themselves."""
    if not to.is_terminal:
        pairs = list(pairs)
        width = max((len(name) for name, _ in pairs), default=0)
        print_lines([title, *(f"{name:<{width}}  {value}" for name, value in pairs)], to=to)
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(Text(name), Text(value))
    to.print(Text(title, style="bold"))
    to.print(table)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, to: Console, text: Sequence[int] = (0,)
) -> None:
    """A table whose `text` columns (the first unless given) are left-aligned and the others right-aligned.

    Without a title it begins with the names of the columns.
    """
    if not to.is_terminal:
        cells = [columns, *rows]
        widths = [max(len(row[n]) for row in cells) for n in range(len(columns))]
        lines = [
            "  ".join(
                cell.ljust(w) if n in text else cell.rjust(w)
                for n, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
        print_lines([title, *lines] if title else lines, to=to)
        return
    table = Table(title=title or None, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position in text else "right", header_style="cyan", no_wrap=True)
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    to.print(table)


def print_lines(lines: Iterable[str], *, to: Console) -> None:
    """Lines as they are, without spaces at their ends."""
    for line in lines:
        to.print(line.rstrip(), soft_wrap=True)


def note(text: str, *, style: str = "dim") -> None:
    """One line about the work on standard error."""
    console(stderr=True).print(Text(text, style=style), soft_wrap=True)


def write(text: str, *, style: str | None = None) -> None:
    """Text of the model on standard output, at once; a terminal gets no control characters, and the style if any.

    A model may write any bytes, and escape sequences could do anything to a terminal.
    """
    if style is not None and sys.stdout.isatty():
        console().print(Text(printable(text), style=style), end="", soft_wrap=True)
    else:
        sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def printable(text: str) -> str:
    """The text with every control character but line breaks and tabs as U+FFFD."""
    return text.translate(_CONTROL)


def size(num_bytes: float) -> str:
    """Bytes with a binary unit: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.1f} TiB"


def count(number: int) -> str:
    """A count, with its short form where that helps: `753,329,921,024 (753.3 B)`."""
    for least, unit in ((10**9, "B"), (10**6, "M")):
        if number >= least:
            return f"{number:,} ({number / least:,.1f} {unit})"
    return f"{number:,}"
