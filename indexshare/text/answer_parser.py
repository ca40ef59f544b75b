"""An assistant's answer as it comes: reasoning, text and tool calls, told apart by the tags of GLM-5.2's template.

    <think>reasoning</think>text<tool_call>name<arg_key>key</arg_key><arg_value>value</arg_value>...</tool_call>

What the pieces join to does not depend on where the stream was cut. Every character of it is reasoning, text, part of a
call, or a tag that did its work; what only looks like a tag stays where it stands:

* `<think>` opens a block at the beginning of the answer alone, `</think>` ends one that is open;
* `<tool_call>` counts where tools are offered, in reasoning too (which goes on behind the call), and only if a whole
  call of this form follows. What breaks the form is text from its `<tool_call>` on.
* A call that the end of the answer cuts off is given as far as it came, marked as not complete.

A call is given when its end is there, so that nothing has to be taken back. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
KEY, END_KEY, VALUE, END_VALUE = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
TAGS = (THINK, END_THINK, CALL, END_CALL, KEY, END_KEY, VALUE, END_VALUE)

_NAME = re.compile(r"\s*([A-Za-z_][\w.:/-]{0,127})\s*")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Reasoning:
    """A piece of what stands in the think block."""

    text: str


@dataclass(frozen=True)
class Text:
    """A piece of the answer itself."""

    text: str


@dataclass(frozen=True)
class Call:
    """A tool call.

    Attributes:
        name: of the tool.
        arguments: a JSON object; what there is of one if the call is not `complete`.
        complete: whether its end came.
        source: how it was written, tags included.
    """

    name: str
    arguments: str
    complete: bool
    source: str


Piece = Reasoning | Text | Call


class AnswerParser:
    """Pieces of an answer from pieces of its text.

    Args:
        in_reasoning: whether the prompt ends inside a think block, as it does where the template opens one.
        reasoning: whether there may be a think block at all.
        tools: the tools that are offered, as `{"function": {"name", "parameters"}}`; without any, tool calls are
            text.
    """

    def __init__(
        self, *, in_reasoning: bool = False, reasoning: bool = True, tools: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self._types = {str(name): kinds for name, kinds in map(_argument_types, tools)}
        self._in_reasoning = in_reasoning
        self._may_open = reasoning and not in_reasoning
        self._call: _CallReader | None = None
        self._held = ""

    @property
    def in_reasoning(self) -> bool:
        """Whether what comes next is reasoning."""
        return self._in_reasoning

    def push(self, text: str) -> list[Piece]:
        """Take the next piece of text; returns what is now certain."""
        self._held += text
        return _joined(self._advance(last=False))

    def finish(self) -> list[Piece]:
        """The rest, at the end of the answer."""
        return _joined(self._advance(last=True))

    def _advance(self, *, last: bool) -> list[Piece]:
        found: list[Piece] = []
        while self._call is not None or self._held:
            more = self._read_call(last) if self._call is not None else self._read_plain(last)
            if more is None:
                break
            found += more
        return found

    def _read_plain(self, last: bool) -> list[Piece] | None:
        """Text up to the next tag, which is taken too; None when more of the stream is needed."""
        if self._may_open and not self._in_reasoning:
            start = self._held.lstrip()
            if start.startswith(THINK):
                before = self._take(len(self._held) - len(start))
                self._in_reasoning, self._may_open, self._held = True, False, start[len(THINK) :]
                return before
            if not last and THINK.startswith(start):
                return None
            self._may_open = False
        tags = ([END_THINK] if self._in_reasoning else []) + ([CALL] if self._types else [])
        at, tag = min(((i, tag) for tag in tags if (i := self._held.find(tag)) >= 0), default=(-1, ""))
        if at < 0:
            keep = 0 if last else possible_start(self._held, tags)
            cut = len(self._held) - keep
            return self._take(cut) if cut else None
        found = self._take(at)
        self._held = self._held[len(tag) :]
        if tag == CALL:
            self._call = _CallReader(self._types)
        else:
            self._in_reasoning = False
        return found

    def _read_call(self, last: bool) -> list[Piece] | None:
        assert self._call is not None
        length = self._call.read(self._held)
        if length is None and not last:
            return None
        call, self._call = self._call, None
        if length is None:
            length = len(self._held) if call.named else 0
        if length == 0:
            return [self._plain(CALL)]
        source, self._held = self._held[:length], self._held[length:]
        return [call.made(CALL + source)]

    def _take(self, length: int) -> list[Piece]:
        text, self._held = self._held[:length], self._held[length:]
        return [self._plain(text)] if text else []

    def _plain(self, text: str) -> Piece:
        return Reasoning(text) if self._in_reasoning else Text(text)


class _CallReader:
    """Reads what stands between `<tool_call>` and its end, going on where it stopped as more comes."""

    def __init__(self, types: Mapping[str, Mapping[str, frozenset[str] | None]]) -> None:
        self._types = types
        self._at = 0
        self._searched = 0  # no end of a value begins before
        self._name: str | None = None
        self._key: str | None = None
        self._in_value = False
        self._arguments: dict[str, Any] = {}
        self._complete = False

    def read(self, text: str) -> int | None:
        """Length of the call in `text`, which begins behind `<tool_call>`; 0 for no call, None when more is needed."""
        if self._name is None:
            match = _NAME.match(text)
            behind = text[match.end() :] if match else ""
            if match is None or not behind:
                return None if _may_be_name(text) else 0
            if not behind.startswith((KEY, END_CALL)):
                return None if any(tag.startswith(behind) for tag in (KEY, END_CALL)) else 0
            self._name, self._at = match[1], match.end()
        while True:
            step = self._read_value(text) if self._in_value else self._read_tag(text)
            if step is not True:
                return step  # type: ignore[return-value]  # False is never given

    def _read_tag(self, text: str) -> bool | int | None:
        """A key, the beginning of a value, or the end: True to go on."""
        match = _SPACE.match(text, self._at)
        assert match is not None
        at = match.end()
        expected = (VALUE,) if self._key is not None else (KEY, END_CALL)
        rest = text[at : at + len(END_CALL)]
        if rest.startswith(END_CALL) and END_CALL in expected:
            self._complete = True
            return at + len(END_CALL)
        if rest.startswith(VALUE) and VALUE in expected:
            self._at, self._in_value = at + len(VALUE), True
            return True
        if rest.startswith(KEY) and KEY in expected:
            end = text.find(END_KEY, at)
            if end < 0:
                return None
            self._key, self._at = text[at + len(KEY) : end].strip(), end + len(END_KEY)
            return True
        return None if any(tag.startswith(rest) for tag in expected) else 0

    def _read_value(self, text: str) -> bool | None:
        end = text.find(END_VALUE, max(self._at, self._searched))
        if end < 0:
            self._searched = len(text) - len(END_VALUE)
            return None
        assert self._name is not None and self._key is not None
        kinds = self._types.get(self._name, {}).get(self._key)
        self._arguments[self._key] = as_value(text[self._at : end], kinds)
        self._key, self._at, self._in_value = None, end + len(END_VALUE), False
        return True

    @property
    def named(self) -> bool:
        """Whether it came at least as far as a whole name with a tag behind it."""
        return self._name is not None

    def made(self, source: str) -> Call:
        """The call, or what there is of it."""
        assert self._name is not None
        arguments = json.dumps(self._arguments, ensure_ascii=False)
        if not self._complete:  # without its last brace no JSON reader takes it for a whole object
            arguments = arguments[:-1]
        return Call(self._name, arguments, self._complete, source)


def _may_be_name(text: str) -> bool:
    match = _NAME.match(text)
    return not text.strip() or (match is not None and match.end() == len(text))


def possible_start(text: str, tags: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `tags` and is none yet."""
    for length in range(min(max(map(len, tags), default=1) - 1, len(text)), 0, -1):
        if any(tag.startswith(text[-length:]) for tag in tags):
            return length
    return 0


def as_value(written: str, kinds: frozenset[str] | None) -> Any:
    """An argument's value: a string as it stands, anything else as JSON, by the types that its schema allows.

    Args:
        written: what stands between the tags.
        kinds: names of JSON types; None where the schema says nothing, and then JSON is taken for what it is.
    """
    if kinds == frozenset({"string"}):
        return written
    try:
        value = json.loads(written, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return written
    if kinds is None or _kind(value) in kinds or (_kind(value) == "integer" and "number" in kinds):
        return value
    return written if "string" in kinds else value


def _no_constant(name: str) -> Any:
    raise ValueError(name)  # NaN and Infinity are no JSON


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    by_type = {str: "string", int: "integer", float: "number", list: "array", dict: "object", type(None): "null"}
    return by_type[type(value)]


def _argument_types(tool: Mapping[str, Any]) -> tuple[Any, dict[str, frozenset[str] | None]]:
    """A tool's name, and what its schema allows for each argument."""
    function = tool.get("function", tool)
    parameters = function.get("parameters") or {}
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return function.get("name"), {str(key): schema_types(schema) for key, schema in (properties or {}).items()}


def schema_types(schema: Any) -> frozenset[str] | None:
    """Names of the JSON types that a schema allows, None where it does not say."""
    if not isinstance(schema, Mapping):
        return None
    if "type" in schema:
        kinds = schema["type"]
        return frozenset([kinds] if isinstance(kinds, str) else map(str, kinds))
    if "enum" in schema or "const" in schema:
        return frozenset(map(_kind, schema["enum"] if "enum" in schema else [schema["const"]]))
    for word in ("anyOf", "oneOf"):
        if isinstance(schema.get(word), list):
            parts = [schema_types(part) for part in schema[word]]
            return None if None in parts else frozenset().union(*(part for part in parts if part is not None))
    return None


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours of one kind as one piece."""
    found: list[Piece] = []
    for piece in pieces:
        before = found[-1] if found else None
        if isinstance(piece, Text) and isinstance(before, Text):
            found[-1] = Text(before.text + piece.text)
        elif isinstance(piece, Reasoning) and isinstance(before, Reasoning):
            found[-1] = Reasoning(before.text + piece.text)
        else:
            found.append(piece)
    return found


def parse_answer(text: str, **settings: Any) -> list[Piece]:
    """A whole answer at once; settings as in `AnswerParser`."""
    parser = AnswerParser(**settings)
    return _joined([*parser.push(text), *parser.finish()])
