"""`/v1/chat/completions` on a real server through OpenAI's client: reasoning, tools, structure, streams, refusals."""

import json
from typing import Any

import openai
import pytest

from tests.unit.serve.conftest import Running

USER: dict[str, Any] = {"role": "user", "content": "Hi"}
PARAMETERS = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}, "on": {"type": "boolean"}},
    "required": ["n", "on"],
    "additionalProperties": False,
}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "get", "parameters": PARAMETERS}}
STRICT: dict[str, Any] = {"type": "function", "function": TOOL["function"] | {"strict": True}}


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, *messages: Any, extra: Any = None, **settings: Any) -> Any:
    given = {"model": "tiny-chat", "seed": 1, "max_tokens": 300} | settings
    return client.chat.completions.create(messages=messages or [USER], extra_body=extra or {}, **given)


def ends_thinking(budget: int) -> dict[str, Any]:
    """A random model does not end its reasoning by itself."""
    return {"thinking_token_budget": budget}


def test_reasoning_and_a_budget(client: openai.OpenAI) -> None:
    extra = ends_thinking(5) | {"structured_outputs": {"choice": ["It is so."]}}
    reply = ask(client, extra=extra, logit_bias={"8": -100})
    message = reply.choices[0].message
    assert message.content == "It is so." and reply.choices[0].finish_reason == "stop"
    assert message.reasoning_content == message.reasoning and message.reasoning
    assert reply.usage.completion_tokens_details.reasoning_tokens == 6, "five, and the end of the block"
    for spelling in ({"thinking": {"type": "enabled", "budget_tokens": 2}}, {"reasoning": {"max_tokens": 2}}):
        found = ask(client, extra=extra | spelling | {"thinking_token_budget": None}, logit_bias={"8": -100})
        assert found.usage.completion_tokens_details.reasoning_tokens == 3


@pytest.mark.parametrize(
    "off",
    [
        {"reasoning_effort": "none"},
        {"reasoning_effort": "minimal"},
        {"chat_template_kwargs": {"enable_thinking": False}},
        {"reasoning_effort": "max", "chat_template_kwargs": {"enable_thinking": False}},
        {"thinking": {"type": "disabled"}},
        {"reasoning": {"effort": "none"}},
    ],
)
def test_no_reasoning(client: openai.OpenAI, off: dict[str, Any]) -> None:
    reply = ask(client, extra=off | {"structured_outputs": {"choice": ["No."]}})
    assert reply.choices[0].message.content == "No."
    assert not hasattr(reply.choices[0].message, "reasoning_content")
    assert reply.usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize("effort", ["none", "high"])
def test_streams_join_to_the_whole(client: openai.OpenAI, effort: str) -> None:
    settings: dict[str, Any] = {"reasoning_effort": effort, "n": 2, "extra": ends_thinking(9), "max_tokens": 60}
    settings |= {"logprobs": True, "top_logprobs": 2}
    whole = ask(client, **settings)
    texts, reasons, ends, usage, tokens = ["", ""], ["", ""], [None, None], None, [0, 0]
    for chunk in ask(client, stream=True, stream_options={"include_usage": True}, **settings):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] += getattr(choice.delta, "reasoning_content", None) or ""
            ends[choice.index] = choice.finish_reason or ends[choice.index]
            tokens[choice.index] += len(choice.logprobs.content) if choice.logprobs else 0
    for number, choice in enumerate(whole.choices):
        assert texts[number] == (choice.message.content or "")
        assert reasons[number] == getattr(choice.message, "reasoning_content", "")
        assert ends[number] == choice.finish_reason and tokens[number] == len(choice.logprobs.content)
    assert usage is not None and usage.completion_tokens == whole.usage.completion_tokens
    assert usage.completion_tokens_details == whole.usage.completion_tokens_details


def test_structured_answers(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": PARAMETERS}}
    for effort in ("none", "high"):
        reply = ask(client, response_format=form, reasoning_effort=effort, extra=ends_thinking(4))
        assert set(json.loads(reply.choices[0].message.content)) == {"n", "on"}
    reply = ask(client, response_format={"type": "json_object"}, reasoning_effort="none", logit_bias={"0": -1})
    content = reply.choices[0].message.content
    assert content.lstrip().startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get"}}])
@pytest.mark.parametrize("stream", [False, True])
def test_required_tools(client: openai.OpenAI, choice: Any, stream: bool) -> None:
    settings: dict[str, Any] = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 200}
    reply = ask(client, stream=stream, extra=ends_thinking(3), **settings)
    if stream:
        calls, ends = [], []
        for chunk in reply:
            for part in chunk.choices:
                calls += part.delta.tool_calls or []
                ends += [part.finish_reason] if part.finish_reason else []
        assert ends == ["tool_calls"] and [call.index for call in calls] == [0]
    else:
        assert reply.choices[0].finish_reason == "tool_calls" and reply.choices[0].message.content is None
        calls = reply.choices[0].message.tool_calls
    (call,) = calls
    assert call.function.name == "get" and call.id.startswith("call_")
    assert set(json.loads(call.function.arguments)) == {"n", "on"}


def test_strict_tools_where_none_is_required(client: openai.OpenAI, server: Running) -> None:
    (opens,) = server.post("/tokenize", prompt="<tool_call>").json()["tokens"]
    settings: dict[str, Any] = {"tools": [STRICT], "reasoning_effort": "none", "max_tokens": 400}
    reply = ask(client, logit_bias={str(opens): 9}, **settings)
    calls = reply.choices[0].message.tool_calls
    assert calls and all(set(json.loads(call.function.arguments)) == {"n", "on"} for call in calls[:-1])


def test_without_tools_a_call_is_text(client: openai.OpenAI) -> None:
    written = "<tool_call>get<arg_key>n</arg_key><arg_value>1</arg_value></tool_call>"
    extra = {"structured_outputs": {"choice": [written]}}
    assert ask(client, reasoning_effort="none", extra=extra).choices[0].message.content == written
    asked = {"tools": [TOOL], "tool_choice": "none"}
    assert ask(client, reasoning_effort="none", extra=extra | asked).choices[0].message.content == written
    (call,) = ask(client, tools=[TOOL], reasoning_effort="none", extra=extra).choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"n": 1}


def test_a_call_that_the_limit_cuts_off(client: openai.OpenAI, server: Running) -> None:
    written = "<tool_call>get<arg_key>n</arg_key><arg_value>1</arg_value></tool_call>"
    extra = {"structured_outputs": {"choice": [written]}}
    tags = server.post("/tokenize", prompt="<tool_call><arg_key></arg_key><arg_value></arg_value>").json()["tokens"]
    bias = {str(tag): 20 for tag in tags}  # the tags as one token each
    reply = ask(client, tools=[TOOL], reasoning_effort="none", extra=extra, max_tokens=9, logit_bias=bias)
    assert reply.choices[0].finish_reason == "length" and not reply.choices[0].message.content
    (call,) = reply.choices[0].message.tool_calls
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(call.function.arguments)


def test_a_loop_with_a_tool(client: openai.OpenAI) -> None:
    first = ask(client, tools=[TOOL], tool_choice="required", extra=ends_thinking(3), parallel_tool_calls=False)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "7"}
    history = [USER, message.model_dump(exclude_none=True), result]
    extra = ends_thinking(3) | {"structured_outputs": {"choice": ["Seven."]}}
    assert ask(client, *history, tools=[TOOL], extra=extra).choices[0].message.content == "Seven."


def test_parts_roles_and_harmless_fields(client: openai.OpenAI) -> None:
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]},
    ]
    extra = {"structured_outputs": {"choice": ["ok"]}}
    reply = ask(client, *messages, reasoning_effort="none", user="me", store=False, metadata={"a": "b"}, extra=extra)
    assert reply.choices[0].message.content == "ok" and reply.usage.prompt_tokens_details.cached_tokens >= 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"messages": []}, "expected a list of messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads text alone"),
        ({"reasoning_effort": "huge"}, "expected one of none, minimal, low, medium, high, xhigh, max"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "put"}}}, "tools has no such tool"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "expected none, auto, required"),
        ({"tools": [STRICT], "response_format": {"type": "json_object"}}, "exclude each other"),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs: true"),
        ({"max_tokens": 9000}, "exceed the context of 4096"),
        ({"messages": [USER | {"content": "word " * 5000}]}, "shorten it to at most 4095"),
        ({"thinking_token_budget": -1}, "thinking_token_budget is -1"),
        ({"thinking": {"type": "maybe"}}, "expected the type enabled or disabled"),
    ],
)
def test_what_is_refused(server: Running, settings: dict[str, Any], words: str) -> None:
    reply = server.post("/v1/chat/completions", **{"messages": [USER]} | settings)
    assert reply.status_code == 400 and words in reply.json()["error"]["message"], reply.text
