"""`/v1/messages` and `/v1/messages/count_tokens`: Anthropic's interface for conversations."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from indexshare.config.arguments import shown
from indexshare.engine.outputs import RequestStats
from indexshare.engine.params import SamplingParams
from indexshare.serve.answer import Answer, Blocks, Made
from indexshare.serve.body import Body
from indexshare.serve.errors import ApiError, bad
from indexshare.serve.model import ChatPrompt, ServedModel
from indexshare.serve.sampling import chat_structure, chosen_tools, sampling_params
from indexshare.serve.service import Running, Service, new_id, read_body
from indexshare.serve.stream import EventStream, event, until_gone

_PROMPT = ("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "cache_control")
_KNOWN = (
    *_PROMPT, "max_tokens", "stop_sequences", "stream", "temperature", "top_p", "top_k", "container", "mcp_servers",
    "context_management", "inference_geo", "speed",
)  # fmt: skip
_SIGNATURE = "indexshare"  # clients send it back with the reasoning; nothing is signed here
_PING = event({"type": "ping"}, "ping")


@dataclass(frozen=True, kw_only=True)
class MessagesRequest:
    """A request as it is understood."""

    id: str
    prompt: ChatPrompt
    params: SamplingParams
    tools: Sequence[dict[str, Any]]


def openai_messages(system: Any, messages: Any) -> list[dict[str, Any]]:
    """Messages in OpenAI's form.

    Raises:
        ApiError: messages, or blocks in them, of a kind that the model cannot read.
    """
    found = []
    if system:
        found.append({"role": "system", "content": _texts(system, "system")})
    if not isinstance(messages, list) or not messages:
        raise bad(f"messages is {shown(messages)}; expected a list of messages", "messages")
    for number, message in enumerate(messages):
        name = f"messages[{number}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("user", "assistant", "system"):
            raise bad(f"{name} is {shown(message)}; expected the role user or assistant", "messages")
        content = message.get("content")
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
            raise bad(f"{name}.content is {shown(content)}; expected a text or a list of blocks", "messages")
        found += [_turn(blocks, name)] if role == "assistant" else _asked(role, blocks, name)
    return found


def _texts(blocks: Any, name: str) -> str:
    if isinstance(blocks, str):
        return blocks
    parts = []
    for block in blocks if isinstance(blocks, list) else [blocks]:
        if not isinstance(block, Mapping) or block.get("type") != "text" or not isinstance(block.get("text"), str):
            raise bad(f"{name} has a block {shown(block)}; this model reads text alone", "messages")
        parts.append(block["text"])
    return "".join(parts)


def _asked(role: str, blocks: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """Results of tools, each a message of its own, and what else was said."""
    found, said = [], []
    for block in blocks:
        if block.get("type") == "tool_result":
            text = _texts(block.get("content") or "", f"{name}.content")
            failed = "Error: " if block.get("is_error") and not text.lower().startswith("error") else ""
            found.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": failed + text})
        else:
            said.append(block)
    if said or not found:
        found.append({"role": role, "content": _texts(said, f"{name}.content")})
    return found


def _turn(blocks: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """What the assistant said before."""
    turn: dict[str, Any] = {"role": "assistant", "content": ""}
    calls = []
    for block in blocks:
        kind = block.get("type")
        if kind == "thinking":
            turn["reasoning_content"] = turn.get("reasoning_content", "") + str(block.get("thinking", ""))
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input") or {}}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind != "redacted_thinking":
            turn["content"] += _texts([block], f"{name}.content")
    return turn | ({"tool_calls": calls} if calls else {})


def _tools(body: Body) -> list[dict[str, Any]]:
    found = []
    for number, tool in enumerate(body.list("tools")):
        if not isinstance(tool, Mapping) or tool.get("type", "custom") != "custom" or "name" not in tool:
            raise bad(f"tools[{number}] is {shown(tool)}; expected name, description and input_schema", "tools")
        function = {"name": tool["name"], "description": tool.get("description", "")}
        function |= {"parameters": tool.get("input_schema") or {"type": "object", "properties": {}}}
        found.append({"type": "function", "function": function | ({"strict": True} if tool.get("strict") else {})})
    return found


def _choice(body: Body) -> tuple[Any, bool]:
    """The choice of tools in OpenAI's words, and whether several calls may be made."""
    said = body.object("tool_choice")
    kind = said.get("type", "auto")
    words = {"auto": "auto", "any": "required", "none": "none", "tool": {"function": {"name": said.get("name")}}}
    if kind not in words:
        raise bad(f"tool_choice is {shown(said)}; expected the type auto, any, tool or none", "tool_choice")
    return words[kind], not said.get("disable_parallel_tool_use", False)


def _thinking(body: Body, model: ServedModel) -> tuple[str | None, int | None]:
    """Effort and budget: no reasoning unless it is asked for, where the template leaves the choice."""
    said = body.object("thinking")
    kind, effort = said.get("type"), body.object("output_config").get("effort")
    if kind not in (None, "enabled", "adaptive", "disabled"):
        raise bad(f"thinking is {shown(said)}; expected the type enabled, adaptive or disabled", "thinking")
    budget = Body(said, said).integer("budget_tokens", 1) if kind == "enabled" else None
    if kind in ("enabled", "adaptive") or (kind is None and effort is not None):
        return effort, budget
    can = model.template is not None and "enable_thinking" in model.template.variables
    return ("none" if can or kind == "disabled" else None), None


def _prompt(body: Body, model: ServedModel) -> ChatPrompt:
    model.check_name(body.text("model"))
    tools = [] if _choice(body)[0] == "none" else _tools(body)
    effort, _ = _thinking(body, model)
    return model.chat_prompt(openai_messages(body.get("system"), body.get("messages")), tools=tools, effort=effort)


def read_messages(body: Body, model: ServedModel) -> MessagesRequest:
    """Check everything before any work; ApiError for what is wrong."""
    prompt, (choice, parallel) = _prompt(body, model), _choice(body)
    limit = body.integer("max_tokens", 1)
    if limit is None:
        raise bad("max_tokens is missing; expected the most tokens of the answer", "max_tokens")
    form = body.object("output_config").get("format")
    asked = Body({} if form is None else {"response_format": form}, ("response_format",))
    budget = _thinking(body, model)[1]
    structure = chat_structure(asked, prompt, choice, parallel=parallel, budget=budget)
    return MessagesRequest(
        id=new_id("msg_"),
        prompt=prompt,
        params=sampling_params(
            body,
            model,
            max_tokens=limit,
            structure=structure,
            skip_special=False,
            stop=tuple(body.list("stop_sequences")),
        ),
        tools=chosen_tools(prompt.tools, choice)[0],
    )


async def messages(request: Request) -> Response:
    """The endpoint."""
    service: Service = request.app.state.service
    body = Body(await read_body(request, service.limits), _KNOWN)
    asked = read_messages(body, service.model)
    running = service.start([(asked.prompt.ids, asked.params)])
    if body.boolean("stream"):
        return EventStream(_events(service, asked, running), running.close, _PING)
    return await until_gone(request, _reply(service, asked, running))


async def count_tokens(request: Request) -> Response:
    """Tokens of the prompt that a request would have."""
    service: Service = request.app.state.service
    body = Body(await read_body(request, service.limits), _KNOWN)
    return JSONResponse({"input_tokens": len(_prompt(body, service.model).ids)})


async def _reply(service: Service, asked: MessagesRequest, running: Running) -> Response:
    answer, blocks, content = Answer(asked.prompt, asked.tools), Blocks(), list[dict[str, Any]]()
    try:
        async for _, chunks in running.chunks():
            for kind, value in blocks.push(answer.take(chunks)):
                if kind == "start":
                    content.append(_block(value, whole=True))
                elif kind != "stop":
                    content[-1]["text" if kind == "text" else "thinking"] += value
    finally:
        running.close()
    assert answer.output is not None
    reason, sequence = _stop(service.model, asked, answer)
    about = {"content": content, "stop_reason": reason, "stop_sequence": sequence}
    return JSONResponse(_message(service, asked) | about | {"usage": _usage(answer.output.stats)})


def _message(service: Service, asked: MessagesRequest) -> dict[str, Any]:
    return {"id": asked.id, "type": "message", "role": "assistant", "model": service.model.name}


def _block(start: str | Made, *, whole: bool) -> dict[str, Any]:
    """A block as it begins; calls with their input if `whole`."""
    if isinstance(start, Made):
        written = start.call.arguments + ("" if start.call.complete else "}")
        return {
            "type": "tool_use",
            "id": start.id,
            "name": start.call.name,
            "input": json.loads(written) if whole else {},
        }
    if start == "text":
        return {"type": "text", "text": ""}
    return {"type": "thinking", "thinking": "", "signature": _SIGNATURE if whole else ""}


def _stop(model: ServedModel, asked: MessagesRequest, answer: Answer) -> tuple[str, str | None]:
    """Why it stopped, and at which of the request's sequences."""
    reason = answer.finish_reason
    if reason == "length":
        return "max_tokens", None
    if reason == "tool_calls":
        return "tool_use", None
    assert answer.output is not None
    if asked.params.stop and answer.output.finish_reason == "stop":
        raw = model.tokenizer.decode(answer.output.token_ids)
        ends = [(at + len(stop), stop) for stop in asked.params.stop if (at := raw.find(stop)) >= 0]
        if ends:
            return "stop_sequence", min(ends)[1]
    return "end_turn", None


def _usage(stats: RequestStats) -> dict[str, Any]:
    """Tokens read anew, tokens from the cache, tokens written."""
    return {
        "input_tokens": stats.prompt_tokens - stats.cached_tokens,
        "cache_read_input_tokens": stats.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": stats.completion_tokens,
    }


async def _events(service: Service, asked: MessagesRequest, running: Running) -> AsyncIterator[str]:
    answer, blocks = Answer(asked.prompt, asked.tools), Blocks()

    def say(kind: str, **content: Any) -> str:
        return event({"type": kind} | content, kind)

    start = _usage(RequestStats(prompt_tokens=len(asked.prompt.ids)))
    empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": start}
    try:
        yield say("message_start", message=_message(service, asked) | empty)
        async for _, chunks in running.chunks():
            found = blocks.push(answer.take(chunks)) + (blocks.finish() if answer.output else [])
            number = blocks.number - sum(kind == "start" for kind, _ in found)
            for kind, value in found:
                number += kind == "start"
                for name, content in _block_events(kind, value):
                    yield say(name, index=number, **content)
        assert answer.output is not None
        reason, sequence = _stop(service.model, asked, answer)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        yield say("message_delta", delta=delta, usage=_usage(answer.output.stats))
        yield say("message_stop")
    except ApiError as error:
        yield event(error.anthropic(), "error")


def _block_events(kind: str, value: Any) -> list[tuple[str, dict[str, Any]]]:
    if kind == "start":
        found: list[tuple[str, dict[str, Any]]] = [
            ("content_block_start", {"content_block": _block(value, whole=False)})
        ]
        if isinstance(value, Made):
            delta = {"type": "input_json_delta", "partial_json": value.call.arguments}
            found.append(("content_block_delta", {"delta": delta}))
        return found
    if kind == "stop":
        signed = {"delta": {"type": "signature_delta", "signature": _SIGNATURE}}
        return [*([("content_block_delta", signed)] if value == "reasoning" else []), ("content_block_stop", {})]
    delta = {"type": "text_delta", "text": value}
    if kind == "reasoning":
        delta = {"type": "thinking_delta", "thinking": value}
    return [("content_block_delta", {"delta": delta})]
