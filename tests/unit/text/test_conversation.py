"""Conversations for templates: the forms that clients send, GLM-5.2's own rules, and levels of effort."""

from typing import Any

import pytest

from indexshare.text.chat_template import ChatTemplate, glm_template
from indexshare.text.conversation import ends_in_reasoning, plain_messages, plain_tools
from indexshare.text.effort import EFFORTS, thinking_variables

GLM = glm_template()
USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1, "b": "x", "c": ["ä"]}'}}
TOOL = {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}
START = "[gMASK]<sop>"


def rendered(*messages: dict[str, Any], effort: str | None = None, **own: Any) -> str:
    return GLM.render(plain_messages(messages), **thinking_variables(effort, own, GLM.variables))


@pytest.mark.parametrize(
    ("effort", "line"),
    list(zip(EFFORTS, [None, None, "High", "High", "High", "Max", "Max"], strict=True)),
)
def test_effort(effort: str, line: str | None) -> None:
    opening = f"<|system|>Reasoning Effort: {line}" if line else ""
    end = "" if line else "</think>"
    assert rendered(USER, effort=effort) == f"{START}{opening}<|user|>Hi<|assistant|><think>{end}"
    assert ends_in_reasoning(rendered(USER, effort=effort)) == bool(line)


def test_effort_unset_and_own_variables() -> None:
    assert "Effort: Max" in rendered(USER)
    assert rendered(USER, effort="none", enable_thinking=True).endswith("<think>")
    assert "Effort: High" in rendered(USER, effort="max", reasoning_effort="high")
    with pytest.raises(ValueError, match="reasoning_effort is 'huge'; expected one of none, minimal, low"):
        rendered(USER, effort="huge")


def test_effort_where_the_template_has_none() -> None:
    plain = ChatTemplate("{{ messages[0].content }}")
    assert thinking_variables("none", {}, plain.variables) == {}
    with pytest.raises(ValueError, match="has no reasoning; leave it out"):
        thinking_variables("high", {}, plain.variables)
    with pytest.raises(ValueError, match="always thinks; use low, high or max"):
        thinking_variables("none", {}, {"reasoning_effort"})


def test_reasoning_of_earlier_turns() -> None:
    answer = {"role": "assistant", "content": " yes ", "reasoning_content": "because"}
    kept, dropped = "<|assistant|><think>because</think>yes", "<|assistant|><think></think>yes"
    assert rendered(USER, answer, USER).count(dropped) == 1
    assert rendered(USER, answer, USER, clear_thinking=False).count(kept) == 1
    assert rendered(USER, answer, USER, clear_thinking=True).count(dropped) == 1
    assert rendered(USER, {"role": "assistant", "content": "<think>because</think>yes"}).count(kept) == 1
    assert rendered(USER, {"role": "assistant", "content": "", "reasoning": "r"}).count("<think>r</think>") == 1


def test_tools_and_observations() -> None:
    step = {"role": "assistant", "content": None, "reasoning_content": "r", "tool_calls": [CALL]}
    results = [{"role": "tool", "content": [{"type": "text", "text": text}], "tool_call_id": "c1"} for text in "12"]
    text = GLM.render(plain_messages([USER, step, *results]), tools=plain_tools([TOOL]))
    call = (
        "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value><arg_key>b</arg_key><arg_value>x</arg_value>"
        '<arg_key>c</arg_key><arg_value>["ä"]</arg_value></tool_call>'
    )
    assert f"<|assistant|><think>r</think>{call}<|observation|><tool_response>1</tool_response>" in text
    assert text.count("<|observation|>") == 1 and "<tool_response>2</tool_response><|assistant|><think>" in text
    assert '<tools>\n{"name": "f", "parameters": {"type": "object"}}\n</tools>' in text and "strict" not in text


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "expected a list of messages"),
        ("hello", "expected a list of messages"),
        ([{"role": "robot", "content": ""}], r"messages\[0\] is .*expected an object with role \(system, developer"),
        ([USER, {"role": "user"}], r"messages\[1\]\.content is None; expected a text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "this model reads text alone"),
        ([{"role": "assistant", "tool_calls": [{}]}], "expected an object with a function of a name"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            r"messages\[0\]\.tool_calls\[0\]\.function\.arguments is '\{', which is no JSON object",
        ),
    ],
)
def test_messages_that_are_refused(messages: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plain_messages(messages)


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ("f", "expected a list of functions"),
        ([{"type": "web_search"}], r"tools\[0\] is .*expected type function"),
        ([TOOL, TOOL], "tools has 'f' 2 times"),
        ([{"function": {"name": "f", "parameters": []}}], None),
        ([{"function": {"name": "f", "parameters": [1]}}], "expected a schema"),
    ],
)
def test_tools_that_are_refused(tools: Any, words: str | None) -> None:
    if words is None:
        assert len(plain_tools(tools)) == 1
    else:
        with pytest.raises(ValueError, match=words):
            plain_tools(tools)


def test_the_template_names_what_it_reads() -> None:
    assert {"tools", "enable_thinking", "reasoning_effort", "clear_thinking", "messages"} <= GLM.variables
