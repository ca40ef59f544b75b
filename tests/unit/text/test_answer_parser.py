"""Answers in pieces: reasoning, text and calls, whatever the stream is cut into and whatever only looks like a tag."""

import itertools
import json
import random
import re
from typing import Any

import pytest

from indexshare.text.answer_parser import TAGS, AnswerParser, Call, Piece, Reasoning, Text, parse_answer, schema_types

TOOLS = [
    {
        "function": {
            "name": "get",
            "parameters": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        }
    },
    {"function": {"name": "now"}},
]
ARGUMENT = "<arg_key>{}</arg_key><arg_value>{}</arg_value>"


def call(name: str, **arguments: str) -> str:
    return f"<tool_call>{name}" + "".join(ARGUMENT.format(k, v) for k, v in arguments.items()) + "</tool_call>"


def parse(text: str, **settings: Any) -> list[Piece]:
    return parse_answer(text, **{"tools": TOOLS} | settings)


def test_a_whole_answer() -> None:
    text = "<think>two\nlines</think>It is" + call("get", city="12", days="3") + call("now")
    calls = [Call("get", '{"city": "12", "days": 3}', True, call("get", city="12", days="3"))]
    calls += [Call("now", "{}", True, call("now"))]
    assert parse(text) == [Reasoning("two\nlines"), Text("It is"), *calls]
    assert parse(text.removeprefix("<think>"), in_reasoning=True) == parse(text)
    assert parse("<think></think>", reasoning=True) == []


@pytest.mark.parametrize(
    "text",
    [
        "a <b> </think> <think> c",
        "<tool_call>",
        "<tool_call>get",
        "<tool_call>get <arg",
        "<tool_call>not a name</tool_call>",
        "<tool_call>get<arg_key>city</arg_key>no value</tool_call>",
        "<tool_call>get</arg_value></tool_call>",
        "see `<tool_call>` and </tool_call>, <tool_calls>, <thinking>",
        "<tool_call><tool_call",
        "<tool_cal",
        " <thin",
    ],
)
def test_what_only_looks_like_a_tag_is_text(text: str) -> None:
    assert parse(text) == [Text(text)]


def test_without_tools_calls_are_text() -> None:
    assert parse(call("now"), tools=()) == [Text(call("now"))]
    assert parse("<think>a", reasoning=False) == [Text("<think>a")]


def test_calls_in_reasoning_and_after_a_false_start() -> None:
    text = "<think>hm" + call("now") + "so</think>done"
    assert parse(text) == [Reasoning("hm"), Call("now", "{}", True, call("now")), Reasoning("so"), Text("done")]
    text = "<tool_call>oh, " + call("now")
    assert parse(text) == [Text("<tool_call>oh, "), Call("now", "{}", True, call("now"))]


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("<tool_call>get<arg_key>ci", "{"),
        ("<tool_call>get<arg_key>city</arg_key><arg_value>Par", "{"),
        ("<tool_call>get" + ARGUMENT.format("city", "Paris"), '{"city": "Paris"'),
        ("<tool_call>get" + ARGUMENT.format("city", "Paris") + "</tool", '{"city": "Paris"'),
    ],
)
def test_a_call_that_is_cut_off(source: str, arguments: str) -> None:
    assert parse("<think>a</think>b" + source) == [Reasoning("a"), Text("b"), Call("get", arguments, False, source)]
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(arguments)


@pytest.mark.parametrize(
    ("schema", "written", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": "string"}, ' "q"\n', ' "q"\n'),
        ({"type": "integer"}, "12", 12),
        ({"type": "number"}, "12", 12),
        ({"type": "integer"}, "twelve", "twelve"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "12", "12"),
        ({"anyOf": [{"type": "string"}, {"type": "array"}]}, "[1]", [1]),
        ({"enum": ["a", "1"]}, "1", "1"),
        ({"type": "boolean"}, "true", True),
        ({"type": "object"}, '{"a": [1, "ä"]}', {"a": [1, "ä"]}),
        ({}, "12", 12),
        ({}, "NaN", "NaN"),
        ({"description": "d"}, "text", "text"),
    ],
)
def test_values_follow_the_schema(schema: dict[str, Any], written: str, value: Any) -> None:
    tool = {"function": {"name": "f", "parameters": {"properties": {"x": schema}}}}
    (found,) = parse(call("f", x=written), tools=[tool])
    assert isinstance(found, Call) and json.loads(found.arguments) == {"x": value}


def test_types_of_schemas() -> None:
    assert schema_types(True) is None and schema_types({"oneOf": [{"type": "string"}, {}]}) is None
    assert schema_types({"const": 1.5}) == {"number"}


def in_pieces(text: str, cuts: list[int], **settings: Any) -> list[Piece]:
    parser = AnswerParser(**{"tools": TOOLS} | settings)
    found: list[Piece] = []
    for start, end in itertools.pairwise([0, *cuts, len(text)]):
        found += parser.push(text[start:end])
    found += parser.finish()
    joined: list[Piece] = []
    for piece in found:
        if joined and not isinstance(piece, Call) and type(piece) is type(joined[-1]):
            joined[-1] = type(piece)(joined[-1].text + piece.text)  # type: ignore[union-attr]
        else:
            joined.append(piece)
    return joined


WORDS = [
    *TAGS,
    *TAGS,
    "get",
    "now",
    "city",
    "days",
    "3",
    "x y",
    " ",
    "\n",
    "<",
    "</",
    "ä",
    "<tool",
    "_call>",
    call("now"),
]
WORDS += [call("get", city="a<b"), ARGUMENT.format("days", "1")]


def random_answer(rng: random.Random) -> str:
    start = rng.choice(["", "", "<think>", " <think>a</think>"])
    text = start + "".join(rng.choice(WORDS) for _ in range(rng.randrange(12)))
    return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.3 else text


def everything(pieces: list[Piece]) -> str:
    return "".join(piece.source if isinstance(piece, Call) else piece.text for piece in pieces)


def check_splits(number: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(number):
        text = random_answer(rng)
        settings = {"in_reasoning": rng.random() < 0.4, "tools": TOOLS if rng.random() < 0.8 else ()}
        whole = parse(text, **settings)
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(8)))
        cuts = list(range(1, len(text))) if rng.random() < 0.2 else cuts
        assert in_pieces(text, cuts, **settings) == whole, (text, cuts)
        # Nothing is lost: what is missing is at most the pair of tags around the reasoning.
        kept = everything(whole)
        without = [text, text.replace("</think>", "", 1)]
        without += [re.sub(r"^(\s*)<think>", r"\1", each) for each in without]
        removable = {text[: m.start()] + text[m.end() :] for m in re.finditer("</think>", text)}
        removable |= {re.sub(r"^(\s*)<think>", r"\1", each) for each in removable}
        assert kept in {*without, *removable}, (text, whole)


def test_any_split_gives_the_same() -> None:
    check_splits(3000, seed=1)


@pytest.mark.slow
def test_any_of_many_splits_gives_the_same() -> None:
    check_splits(100_000, seed=2)


def test_text_is_given_as_soon_as_it_is_certain() -> None:
    parser = AnswerParser(in_reasoning=True, tools=TOOLS)
    given = [parser.push(piece) for piece in ("ab", "c</th", "ink", ">d", "<", "e", "<tool_call>now", "</tool_call>")]
    expected: list[list[Piece]] = [[Reasoning("ab")], [Reasoning("c")], [], [Text("d")], [], [Text("<e")], []]
    assert given == [*expected, [Call("now", "{}", True, call("now"))]] and parser.finish() == []


def test_long_calls_are_read_in_linear_time() -> None:
    value = "x < y\n" * 20_000
    text = call("get", city=value)
    (found,) = in_pieces(text, list(range(0, len(text), 40)))
    assert isinstance(found, Call) and json.loads(found.arguments)["city"] == value
