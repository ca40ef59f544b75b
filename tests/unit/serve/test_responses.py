"""`/v1/responses` on a real server through OpenAI's client."""

import json
from typing import Any

import openai
import pytest

from tests.unit.serve.conftest import Running
from tests.unit.serve.test_chat import PARAMETERS

TOOL: dict[str, Any] = {"type": "function", "name": "get", "parameters": PARAMETERS, "strict": True}
FORM: dict[str, Any] = {"format": {"type": "json_schema", "name": "x", "schema": PARAMETERS, "strict": True}}
OFF: dict[str, Any] = {"reasoning": {"effort": "none"}}
BUDGET: dict[str, Any] = {"extra_body": {"thinking_token_budget": 4}}


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def ask(client: openai.OpenAI, given: Any = "Hi", **settings: Any) -> Any:
    return client.responses.create(**{"model": "tiny-chat", "input": given, "max_output_tokens": 200} | settings)


def test_an_answer(client: openai.OpenAI) -> None:
    reply = ask(client, text=FORM, **OFF)
    assert reply.status == "completed" and set(json.loads(reply.output_text)) == {"n", "on"}
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert ask(client, text=FORM, instructions="Be short.", **OFF).usage.input_tokens > reply.usage.input_tokens
    cut = ask(client, text=FORM, **OFF | {"max_output_tokens": 3})
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"


def test_reasoning_and_calls(client: openai.OpenAI) -> None:
    reply = ask(client, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, **BUDGET)
    reasoning, call = reply.output
    assert reasoning.type == "reasoning" and reasoning.content[0].text and call.type == "function_call"
    assert set(json.loads(call.arguments)) == {"n", "on"} and reply.usage.output_tokens_details.reasoning_tokens == 5
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "7"}
    history = [
        {"role": "user", "content": "Hi"},
        *(item.model_dump(exclude_none=True) for item in reply.output),
        result,
    ]
    second = ask(client, history, tools=[TOOL], tool_choice="none", text=FORM, **BUDGET)
    assert [item.type for item in second.output] == ["reasoning", "message"]


@pytest.mark.parametrize("settings", [{"text": FORM}, {"tools": [TOOL], "tool_choice": "required"}])
def test_streams(client: openai.OpenAI, settings: dict[str, Any]) -> None:
    events = list(ask(client, stream=True, parallel_tool_calls=False, **settings, **BUDGET))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    final = events[-1].response
    for index, item in enumerate(final.output):
        own = [event for event in events if getattr(event, "output_index", None) == index]
        assert own[0].type == "response.output_item.added" and own[-1].type == "response.output_item.done"
        assert own[-1].item == item
        written = "".join(event.delta for event in own if event.type.endswith(".delta"))
        assert written == (item.arguments if item.type == "function_call" else item.content[0].text)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "input is None"),
        ({"input": [{"type": "item_reference"}]}, "this server reads message, function_call"),
        ({"input": "a", "previous_response_id": "r"}, "nothing is stored here"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "offers functions alone"),
        ({"input": "a", "reasoning": {"effort": "huge"}}, "expected one of none, minimal"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "reads text alone"),
    ],
)
def test_what_is_refused(server: Running, body: dict[str, Any], words: str) -> None:
    reply = server.post("/v1/responses", **body)
    assert reply.status_code == 400 and words in reply.json()["error"]["message"], reply.text
