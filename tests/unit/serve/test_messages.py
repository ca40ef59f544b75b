"""`/v1/messages` on a real server through Anthropic's client."""

import json
from typing import Any

import anthropic
import pytest

from tests.unit.serve.conftest import Running

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {"name": "get", "description": "Gets.", "input_schema": SCHEMA}
ANY: dict[str, Any] = {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
ANSWER = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
THINKING = {"thinking": {"type": "enabled", "budget_tokens": 4}}


@pytest.fixture(scope="session")
def client(server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def ask(client: anthropic.Anthropic, *messages: Any, **settings: Any) -> Any:
    known = {"tools", "tool_choice", "thinking", "system", "stop_sequences", "temperature", "max_tokens"}
    extra = {name: value for name, value in settings.items() if name not in known}
    given = {"max_tokens": 200} | {name: value for name, value in settings.items() if name in known}
    return client.messages.create(model="tiny-chat", messages=messages or [USER], extra_body=extra, **given)


def test_an_answer(client: anthropic.Anthropic) -> None:
    reply = ask(client, **ANSWER)
    (block,) = reply.content
    assert block.type == "text" and set(json.loads(block.text)) == {"n"}
    assert reply.stop_reason == "end_turn" and reply.role == "assistant" and reply.model == "tiny-chat"
    usage = reply.usage
    count = client.messages.count_tokens(model="tiny-chat", messages=[USER]).input_tokens
    assert usage.input_tokens + usage.cache_read_input_tokens == count and usage.output_tokens > 1


def test_thinking_comes_first_and_keeps_to_its_budget(client: anthropic.Anthropic) -> None:
    reply = ask(client, **THINKING, **ANSWER)
    assert [block.type for block in reply.content] == ["thinking", "text"] and reply.content[0].signature
    assert set(json.loads(reply.content[1].text)) == {"n"}
    assert [block.type for block in ask(client, thinking={"type": "disabled"}, **ANSWER).content] == ["text"]


@pytest.mark.parametrize("settings", [ANSWER | THINKING, ANY | THINKING, ANY, {"max_tokens": 40}])
def test_streams(client: anthropic.Anthropic, settings: dict[str, Any]) -> None:
    known = {name: value for name, value in settings.items() if name != "output_config"}
    extra = {name: value for name, value in settings.items() if name == "output_config"}
    given: dict[str, Any] = {"max_tokens": 200} | known
    with client.messages.stream(model="tiny-chat", messages=[USER], extra_body=extra, **given) as stream:
        events = list(stream)
        final = stream.get_final_message()
    assert events[0].type == "message_start" and events[-1].type == "message_stop"
    starts = [event.index for event in events if event.type == "content_block_start"]
    assert starts == list(range(len(final.content)))
    assert starts == [event.index for event in events if event.type == "content_block_stop"]
    kinds = [block.type for block in final.content]
    if "tools" in settings:
        assert kinds[-1] == "tool_use" and final.stop_reason == "tool_use" and set(final.content[-1].input) == {"n"}
    if "thinking" in settings:
        assert kinds[0] == "thinking" and final.content[0].thinking and final.content[0].signature
    if settings == {"max_tokens": 40}:
        assert final.stop_reason in ("max_tokens", "end_turn") and final.usage.output_tokens <= 40


def test_a_loop_with_a_tool(client: anthropic.Anthropic) -> None:
    first = ask(client, **ANY, **THINKING)
    call = first.content[-1]
    assert call.type == "tool_use" and first.stop_reason == "tool_use" and isinstance(call.input["n"], int)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "7"}]}
    turn = {"role": "assistant", "content": [block.model_dump() for block in first.content]}
    asked = [USER, turn, {"role": "user", "content": [result, {"type": "text", "text": "And?"}]}]
    second = ask(client, *asked, tools=[TOOL], tool_choice={"type": "none"}, system="Be short.", **ANSWER)
    assert second.content[0].type == "text"
    longer = client.messages.count_tokens(model="tiny-chat", messages=asked, system="Be short.").input_tokens
    assert longer > client.messages.count_tokens(model="tiny-chat", messages=[USER]).input_tokens


def test_stop_sequences(client: anthropic.Anthropic) -> None:
    reply = ask(client, stop_sequences=["n", "{"], **ANSWER)
    assert reply.stop_reason == "stop_sequence" and reply.stop_sequence == "{" and "{" not in str(reply.content)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "messages is None"),
        ({"messages": [USER]}, "max_tokens is missing"),
        ({"messages": [USER], "max_tokens": 5000}, "exceed the context of 4096"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}], "max_tokens": 1}, "reads text alone"),
        ({"messages": [{"role": "robot", "content": ""}], "max_tokens": 1}, "expected the role user or assistant"),
        ({"messages": [USER], "max_tokens": 1, "tools": [{"type": "bash_20250124"}]}, "expected name, description"),
        ({"messages": [USER], "max_tokens": 1, "tool_choice": {"type": "some"}}, "expected the type auto, any"),
        (
            {"messages": [USER], "max_tokens": 1, "thinking": {"type": "enabled", "budget_tokens": 0}},
            "budget_tokens is 0",
        ),
        ({"messages": [USER], "max_tokens": 1, "max_token": 1}, "did you mean 'max_tokens'?"),
    ],
)
def test_what_is_refused(server: Running, body: dict[str, Any], words: str) -> None:
    reply = server.post("/v1/messages", **body)
    assert reply.status_code == 400
    error = reply.json()
    assert error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    assert words in error["error"]["message"]


def test_errors_are_the_clients_own(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="is not served here"):
        client.messages.create(model="other", max_tokens=1, messages=[{"role": "user", "content": "a"}])
