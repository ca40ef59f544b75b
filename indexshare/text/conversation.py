"""A conversation as clients send it, brought to the form that chat templates read. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from indexshare.text.answer_parser import THINK
from indexshare.text.tokenizer_file import shown

ROLES = ("system", "developer", "user", "assistant", "tool")


def plain_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages with `content` as text, arguments of tool calls as objects, and reasoning as `reasoning_content`.

    Args:
        messages: as OpenAI's clients send them: content a text or a list of text parts, arguments a JSON text,
            `reasoning` or `reasoning_content` on those of the assistant.

    Raises:
        ValueError: anything else; the message is named by its number, from 0.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ValueError(f"messages is {shown(messages)}; expected a list of messages, each with role and content")
    found = []
    for number, message in enumerate(messages):
        name = f"messages[{number}]"
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            raise ValueError(
                f"{name} is {shown(message)}; expected an object with role ({', '.join(ROLES)}) and content"
            )
        found.append(_plain(message, name))
    return found


def _plain(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    role = message["role"]
    plain: dict[str, Any] = {"role": "system" if role == "developer" else role}
    plain["content"] = _text(message.get("content"), f"{name}.content", empty=role == "assistant")
    if role == "tool" and isinstance(message.get("tool_call_id"), str):
        plain["tool_call_id"] = message["tool_call_id"]
    if role != "assistant":
        return plain
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(reasoning, str) and reasoning:
        plain["reasoning_content"] = reasoning
    calls = message.get("tool_calls")
    if calls:
        if not isinstance(calls, Sequence) or isinstance(calls, str):
            raise ValueError(f"{name}.tool_calls is {shown(calls)}; expected a list")
        plain["tool_calls"] = [_call(call, f"{name}.tool_calls[{n}]") for n, call in enumerate(calls)]
    return plain


def _text(content: Any, name: str, *, empty: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and empty:
        return ""
    if not isinstance(content, Sequence):
        raise ValueError(f"{name} is {shown(content)}; expected a text or a list of text parts")
    pieces = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "input_text", "output_text", "refusal"):
            raise ValueError(
                f"{name} has a part {shown(part)}; this model reads text alone: expected parts of type text"
            )
        text = part.get("text", part.get("refusal"))
        if not isinstance(text, str):
            raise ValueError(f"{name} has a part {shown(part)}; expected its text")
        pieces.append(text)
    return "".join(pieces)


def _call(call: Any, name: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{name} is {shown(call)}; expected an object with a function of a name and arguments")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            # A call that the token limit cut off is in the history as it came.
            raise ValueError(f"{name}.function.arguments is {shown(arguments)}, which is no JSON object") from None
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{name}.function.arguments is {shown(arguments)}; expected a JSON object")
    plain: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    return ({"id": call["id"]} if isinstance(call.get("id"), str) else {}) | plain


def plain_tools(tools: Any) -> list[dict[str, Any]]:
    """Tools as `{"type": "function", "function": {"name", "description", "parameters"}}`.

    Raises:
        ValueError: something else, or two of one name.
    """
    if tools is None:
        return []
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise ValueError(f"tools is {shown(tools)}; expected a list of functions")
    found: list[dict[str, Any]] = []
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise ValueError(f"tools[{number}] is {shown(tool)}; expected type function, with a function of a name")
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise ValueError(
                f"tools[{number}].function.parameters is {shown(function['parameters'])}; expected a schema"
            )
        found.append({"type": "function", "function": dict(function)})
    names = [tool["function"]["name"] for tool in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"tools has {twice[0]!r} {names.count(twice[0])} times; give each tool a name of its own")
    return found


def ends_in_reasoning(prompt: str) -> bool:
    """Whether a rendered prompt leaves the answer inside a think block."""
    return prompt.rstrip().endswith(THINK)
