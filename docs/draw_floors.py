"""Draws `floors.svg` from the floors that `tests/unit/test_floors.py` checks and the tree in `architecture.md`.

python docs/draw_floors.py
"""

import ast
import re
from html import escape
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "floors.svg"
WIDTH, LEFT, ROW, GAP = 1120, 70, 62, 10
COLOURS = {"facts": "#e8f1e4", "tensors": "#e6eef8", "people": "#fbeedd"}
FACTS = {"config", "text", "planner", "data", "repository"}
PEOPLE = {"cli", "measure", "verify", "sharing", "eval", "serve"}
STYLE = (
    "text{font-family:system-ui,sans-serif;fill:#222}.name{font-size:16px;font-weight:600}"
    ".what{font-size:11.5px}.floor{font-size:13px;fill:#777}"
)


def floors() -> dict[str, int]:
    """Room to floor, for the rooms that exist."""
    tree = ast.parse((ROOT / "tests/unit/test_floors.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FLOORS":
            known: dict[str, int] = ast.literal_eval(node.value)
            return {room: floor for room, floor in known.items() if (ROOT / "indexshare" / room).is_dir()}
    raise ValueError("tests/unit/test_floors.py has no table FLOORS")


def descriptions() -> dict[str, str]:
    """Room to the first words that the tree says of it, up to a colon or semicolon."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    return {room: re.split("[:;]", what)[0] for room, what in re.findall(r"^  (\w+)/ +(.+)$", text, re.MULTILINE)}


def wrapped(text: str, most: int) -> list[str]:
    """The words in lines of at most `most` characters."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= most and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def box(room: str, what: str, x: float, y: float, width: float) -> list[str]:
    """One room."""
    kind = "facts" if room in FACTS else "people" if room in PEOPLE else "tensors"
    fill = COLOURS[kind]
    parts = [f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{ROW}" rx="6" fill="{fill}" stroke="#999"/>']
    parts.append(f'<text class="name" x="{x + 10:.0f}" y="{y + 21:.0f}">{escape(room)}</text>')
    for number, line in enumerate(wrapped(what, int(width / 6.0))[:2]):
        parts.append(f'<text class="what" x="{x + 10:.0f}" y="{y + 38 + 15 * number:.0f}">{escape(line)}</text>')
    return parts


def draw() -> str:
    """The picture as SVG text: the highest floor on top, `config` at the bottom."""
    rooms, what = floors(), descriptions()
    order = sorted(rooms, key=lambda room: -rooms[room])
    levels = [(floor, list(group)) for floor, group in groupby(order, key=rooms.__getitem__)]
    height = len(levels) * (ROW + GAP) + 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>The rooms of indexshare by floor; each imports only from floors below it</title>",
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for number, (floor, names) in enumerate(levels):
        y = GAP + number * (ROW + GAP)
        width = (WIDTH - LEFT - GAP * len(names)) / len(names)
        parts.append(f'<text class="floor" x="14" y="{y + ROW / 2 + 5:.0f}">floor {floor}</text>')
        for place, room in enumerate(names):
            parts += box(room, what[room], LEFT + place * (width + GAP), y, width)
    note = "Imports go down only. Green: facts and text. Blue: tensors. Orange: serving, measuring, and the command."
    parts.append(f'<text class="floor" x="{LEFT}" y="{height - 14}">{note}</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
