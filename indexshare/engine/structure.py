"""What a text must look like: a limit on reasoning, and a grammar for what stands behind it. Plain Python, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from indexshare.config.arguments import as_integer
from indexshare.text.answer_parser import CALL, END_CALL

# Tags of a conversation's format, which plain text and strings of a call may not hold.
_NOT_IN_TEXT = ("<think>", "</think>", END_CALL, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")

_MOST_SPACES = 16  # in a row, of JSON: without a limit a model may write nothing else


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Rules for a text, kept token by token.

    Attributes:
        grammar: the format of the text as JSON, in the words of xgrammar's structural tags; None for any text. It holds
            behind the reasoning.
        reasoning_tokens: most tokens of reasoning; `</think>` is forced behind them. None for any number.
        in_reasoning: whether the prompt ends inside a think block. No text may end in there then.

    Raises:
        ValueError: a value of the wrong type.
    """

    grammar: str | None = None
    reasoning_tokens: int | None = None
    in_reasoning: bool = False

    def __post_init__(self) -> None:
        if self.reasoning_tokens is not None:
            as_integer("reasoning_tokens", self.reasoning_tokens, low=0)


def json_grammar(schema: Mapping[str, Any] | None) -> str:
    """The grammar of a JSON text: of this schema, or any object for None."""
    form = {"type": "json_schema", "json_schema": {"type": "object"} if schema is None else schema}
    return json.dumps(form | {"max_whitespace_cnt": _MOST_SPACES})


def regex_grammar(pattern: str) -> str:
    """The grammar of the texts that a regular expression matches as a whole."""
    return json.dumps({"type": "regex", "pattern": pattern})


def ebnf_grammar(text: str) -> str:
    """A grammar in xgrammar's EBNF, with a rule `root`."""
    return json.dumps({"type": "grammar", "grammar": text})


def choice_grammar(choices: Sequence[str]) -> str:
    """The grammar of these texts alone."""
    return json.dumps({"type": "or", "elements": [{"type": "const_string", "value": text} for text in choices]})


def tools_grammar(tools: Sequence[Mapping[str, Any]], *, required: bool, parallel: bool = True) -> str:
    """The grammar of an answer with tool calls in GLM-5.2's form, each of an offered tool and its schema.

    Args:
        tools: as in chat requests. Those that are not `strict` may have any arguments, unless a call is `required`.
        required: nothing but calls, one at least; otherwise text with calls in it.
        parallel: whether there may be several.
    """
    tags = [_call_tag(tool["function"], required) for tool in tools]
    if required:
        form: dict[str, Any] = {"type": "tags_with_separator", "tags": tags, "separator": "", "at_least_one": True}
    else:
        form = {"type": "triggered_tags", "triggers": [CALL], "tags": tags, "excludes": list(_NOT_IN_TEXT)}
    return json.dumps(form | {"stop_after_first": not parallel})


def _call_tag(function: Mapping[str, Any], required: bool) -> dict[str, Any]:
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not (required or function.get("strict")):
        parameters = {"type": "object", "additionalProperties": True}
    content = {"type": "json_schema", "json_schema": parameters, "style": "glm_xml", "max_whitespace_cnt": _MOST_SPACES}
    return {"type": "tag", "begin": CALL + function["name"], "content": content, "end": END_CALL}
