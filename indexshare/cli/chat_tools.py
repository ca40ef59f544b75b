"""Tools that `indexshare chat` can offer: a calculator, a clock, and a search in files. None changes anything."""

from __future__ import annotations

import ast
import json
import operator
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from indexshare.text.files import NotText, read_text

_MOST_FOUND = 20
_MOST_FILES = 2000
_MOST_DIGITS = 1000
_OPERATIONS: Mapping[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def calculate(expression: str) -> str:
    """The value of arithmetic with + - * / // % ** and brackets."""
    return str(_value(ast.parse(expression.strip(), mode="eval").body))


def _value(node: ast.expr) -> int | float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        base, power = _value(node.left), _value(node.right)
        if abs(power) * len(str(abs(base))) > _MOST_DIGITS:
            raise ValueError("the result would be too long")
        return base**power  # type: ignore[no-any-return]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.left), _value(node.right))  # type: ignore[no-any-return]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_value(node.operand))  # type: ignore[no-any-return]
    raise ValueError("expected numbers and + - * / // % ** and brackets")


def now() -> str:
    """Date and time here."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def search_files(text: str, folder: str = ".") -> str:
    """Lines that hold a text, in the text files below the current folder."""
    here = Path.cwd().resolve()
    root = (here / folder).resolve()
    if here not in [root, *root.parents]:
        raise ValueError(f"{folder} lies outside the current folder")
    found, seen = [], 0
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(here).parts)
        if hidden or not path.is_file() or seen >= _MOST_FILES:
            continue
        seen += 1
        try:
            lines = read_text(path).splitlines()
        except (NotText, OSError):
            continue
        found += [f"{path.relative_to(here)}:{n}: {line.strip()}" for n, line in enumerate(lines, 1) if text in line]
        if len(found) >= _MOST_FOUND:
            break
    return "\n".join(found[:_MOST_FOUND]) or "nothing found"


def _tool(name: str, description: str, required: tuple[str, ...] = (), **properties: str) -> dict[str, Any]:
    schema = {key: {"type": "string", "description": text} for key, text in properties.items()}
    parameters = {"type": "object", "properties": schema, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_FUNCTIONS: Mapping[str, Callable[..., str]] = {"calculator": calculate, "clock": now, "search_files": search_files}
TOOLS = (
    _tool("calculator", "Compute an arithmetic expression.", ("expression",), expression="such as 12 * (3 + 4)"),
    _tool("clock", "The current date and time."),
    _tool(
        "search_files", "Find lines that hold a text in the files of the current folder.", ("text",),
        text="what to look for", folder="a folder below the current one",
    ),
)  # fmt: skip


def run_tool(name: str, arguments: str) -> str:
    """The result of a call, or what was wrong with it, for the model to read."""
    function = _FUNCTIONS.get(name)
    if function is None:
        return f"Error: there is no tool {name!r}; there are {', '.join(_FUNCTIONS)}"
    try:
        return function(**json.loads(arguments))
    except (ValueError, TypeError, SyntaxError, ArithmeticError, OSError, RecursionError, MemoryError) as error:
        return f"Error: {error}"
