"""Requests in the shapes that programs send: a chat page's, an agent's, an evaluation's. Written by hand."""

import json
from typing import Any

import pytest

from tests.unit.serve.conftest import Running

FILE = {"type": "string", "description": "Path of the file"}
READ = {"type": "object", "properties": {"file_path": FILE}, "required": ["file_path"], "additionalProperties": False}
EPHEMERAL = {"cache_control": {"type": "ephemeral"}}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "a chat page": (
        "/v1/chat/completions",
        {
            "stream": True, "stream_options": {"include_usage": True}, "model": "tiny-chat", "temperature": 0.7,
            "messages": [
                {"role": "system", "content": "You are kind."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "<think>\nhm\n</think>\nHello!", "reasoning_content": ""},
                {"role": "user", "content": [{"type": "text", "text": "And now?"}]},
            ],
            "max_tokens": 12, "frequency_penalty": 0, "top_p": 0.9, "seed": 3, "stop": None, "user": "u1",
        },
    ),
    "a chat page that wants a title": (
        "/v1/chat/completions",
        {
            "model": "tiny-chat", "stream": False, "max_completion_tokens": 10, "reasoning_effort": "none",
            "messages": [{"role": "user", "content": "Give the conversation a title."}], "metadata": {"task": "title"},
        },
    ),
    "an agent in a terminal": (
        "/v1/messages?beta=true",
        {
            "model": "tiny-chat", "max_tokens": 24, "stream": True, "temperature": 1, "metadata": {"user_id": "u"},
            "system": [{"type": "text", "text": "You write code."} | EPHEMERAL],
            "thinking": {"type": "enabled", "budget_tokens": 4},
            "tools": [{"name": "Read", "description": "Reads a file.", "input_schema": READ} | EPHEMERAL],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Read a.py"} | EPHEMERAL]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "I read it.", "signature": "s"},
                        {"type": "tool_use", "id": "toolu_1", "name": "Read", "input": {"file_path": "a.py"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x = 1", "is_error": False},
                        {"type": "text", "text": "Go on."} | EPHEMERAL,
                    ],
                },
            ],
        },
    ),
    "an agent with functions": (
        "/v1/chat/completions",
        {
            "model": "tiny-chat", "stream": True, "max_tokens": 12, "tool_choice": "auto", "parallel_tool_calls": True,
            "tools": [{"type": "function", "function": {"name": "read", "description": "", "parameters": READ}}],
            "messages": [
                {"role": "user", "content": "Read a.py and b.py"},
                {
                    "role": "assistant", "content": "",
                    "tool_calls": [
                        {"id": name, "type": "function", "function": {"name": "read", "arguments": arguments}}
                        for name, arguments in (("1", '{"file_path": "a.py"}'), ("2", '{"file_path": "b.py"}'))
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "name": "read", "content": "x = 1"},
                {"role": "tool", "tool_call_id": "2", "name": "read", "content": ""},
            ],
        },
    ),
    "an evaluation by likelihood": (
        "/v1/completions",
        {
            "model": "tiny-chat", "prompt": [[65, 66, 67], [65, 70, 71, 72]], "max_tokens": 1, "temperature": 0,
            "logprobs": 1, "echo": True, "seed": 1234,
        },
    ),
    "an evaluation by generation": (
        "/v1/completions",
        {"model": "tiny-chat", "prompt": ["a", "b"], "max_tokens": 8, "temperature": 0, "stop": ["\n\n"], "seed": 1234},
    ),
    "a load generator": (
        "/v1/completions",
        {
            "model": "tiny-chat", "prompt": "a b c", "max_tokens": 8, "stream": True, "ignore_eos": True,
            "stream_options": {"include_usage": True}, "n": 1, "logprobs": None,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_answered(server: Running, name: str) -> None:
    path, body = SHAPES[name]
    reply = server.post(path, **body)
    assert reply.status_code == 200, reply.text
    if not body.get("stream"):
        assert len(reply.json()["choices"]) == (2 if isinstance(body.get("prompt"), list) else 1)
        return
    events = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    assert not any("error" in event for event in events)
    last = events[-1]
    assert last["type"] == "message_stop" if "messages" in path else "usage" in last or "stream_options" not in body
