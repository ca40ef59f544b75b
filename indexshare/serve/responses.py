"""`/v1/responses`: OpenAI's newer interface for conversations. Nothing is stored: every request brings all of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from indexshare.config.arguments import shown
from indexshare.engine.params import SamplingParams
from indexshare.serve.answer import Answer, Blocks, Made
from indexshare.serve.body import Body
from indexshare.serve.chat import answer_limit
from indexshare.serve.errors import ApiError, bad
from indexshare.serve.model import ChatPrompt, ServedModel
from indexshare.serve.sampling import chat_structure, chosen_tools, sampling_params
from indexshare.serve.service import Running, Service, new_id, read_body
from indexshare.serve.stream import EventStream, event, until_gone

_KNOWN = (
    "model", "input", "instructions", "max_output_tokens", "temperature", "top_p", "tools", "tool_choice", "seed",
    "parallel_tool_calls", "reasoning", "text", "stream", "stream_options", "include", "truncation", "background",
    "previous_response_id", "chat_template_kwargs", "thinking_token_budget", "stop", "logit_bias", "top_logprobs",
)  # fmt: skip
_REPEATED = ("instructions", "max_output_tokens", "temperature", "top_p", "tool_choice", "reasoning", "text")


@dataclass(frozen=True, kw_only=True)
class ResponsesRequest:
    """A request as it is understood; `said` is what replies repeat of it."""

    id: str
    prompt: ChatPrompt
    params: SamplingParams
    tools: Sequence[dict[str, Any]]
    said: dict[str, Any]


def openai_messages(instructions: str | None, given: Any) -> list[dict[str, Any]]:
    """Messages of a chat request from the items of this interface; ApiError for those that cannot be read."""
    found: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise bad(f"input is {shown(given)}; expected a text or a list of items", "input")
    for number, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise bad(f"input[{number}] is {shown(item)}; expected an item", "input")
        _take(item, f"input[{number}]", found)
    return found


def _take(item: Mapping[str, Any], name: str, found: list[dict[str, Any]]) -> None:
    kind = item.get("type", "message")
    if kind == "function_call_output":
        output = item.get("output")
        found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    elif kind == "message" and item.get("role") != "assistant":
        found.append({"role": item.get("role"), "content": item.get("content")})
    elif kind in ("message", "function_call", "reasoning"):
        turn = found[-1] if found and found[-1]["role"] == "assistant" else {"role": "assistant", "content": []}
        if not found or turn is not found[-1]:
            found.append(turn)
        _extend(turn, item, kind)
    else:
        known = "message, function_call, function_call_output, reasoning"
        raise bad(f"{name} has the type {kind!r}; this server reads {known}", "input")


def _extend(turn: dict[str, Any], item: Mapping[str, Any], kind: str) -> None:
    """Add an item to what the assistant said in one turn."""
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        turn.setdefault("tool_calls", []).append({"id": item.get("call_id"), "function": function})
    elif kind == "reasoning":
        parts = item.get("content") or item.get("summary") or []
        texts = [str(part.get("text", "")) for part in parts if isinstance(part, Mapping)]
        turn["reasoning_content"] = turn.get("reasoning_content", "") + "".join(texts)
    else:
        content = item.get("content")
        turn["content"] += [{"type": "text", "text": content}] if isinstance(content, str) else list(content or [])


def _tools(body: Body) -> list[dict[str, Any]]:
    found = []
    for number, tool in enumerate(body.list("tools")):
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise bad(f"tools[{number}] is {shown(tool)}; this server offers functions alone", "tools")
        keys = ("name", "description", "parameters", "strict")
        found.append({"type": "function", "function": {key: tool[key] for key in keys if tool.get(key) is not None}})
    return found


def read_responses(body: Body, model: ServedModel) -> ResponsesRequest:
    """Check everything before any work; ApiError for what is wrong."""
    model.check_name(body.text("model"))
    for name in ("previous_response_id", "background"):
        if body.get(name):
            raise bad(f"{name} is {shown(body.get(name))}, but nothing is stored here; send the whole input", name)
    tools, choice = _tools(body), body.get("tool_choice")
    prompt = model.chat_prompt(
        openai_messages(body.text("instructions"), body.get("input")),
        tools=[] if choice == "none" else tools,
        effort=body.object("reasoning").get("effort"),
        variables=body.object("chat_template_kwargs"),
    )
    form = body.object("text").get("format")
    structure = chat_structure(
        Body({} if form is None else {"response_format": form}, ("response_format",)),
        prompt,
        choice,
        parallel=body.boolean("parallel_tool_calls", True),
        budget=body.integer("thinking_token_budget", 0),
    )
    limit = answer_limit(body, model, len(prompt.ids))
    said = {name: body.get(name) for name in _REPEATED} | {"tools": body.list("tools")}
    return ResponsesRequest(
        id=new_id("resp_"),
        prompt=prompt,
        params=sampling_params(body, model, max_tokens=limit, structure=structure, skip_special=False),
        tools=chosen_tools(prompt.tools, choice)[0],
        said=said | {"parallel_tool_calls": body.boolean("parallel_tool_calls", True)},
    )


async def responses(request: Request) -> Response:
    """The endpoint."""
    service: Service = request.app.state.service
    body = Body(await read_body(request, service.limits), _KNOWN)
    asked = read_responses(body, service.model)
    running = service.start([(asked.prompt.ids, asked.params)])
    writer = Writer(service, asked)
    if body.boolean("stream"):
        return EventStream(_events(writer, running), running.close)
    return await until_gone(request, _reply(writer, running))


async def _reply(writer: Writer, running: Running) -> Response:
    try:
        async for _, chunks in running.chunks():
            writer.take(chunks)
    finally:
        running.close()
    return JSONResponse(writer.response())


async def _events(writer: Writer, running: Running) -> AsyncIterator[str]:
    number = 0
    try:
        found = [("response.created", {"response": writer.response()})]
        found.append(("response.in_progress", {"response": writer.response()}))
        async for _, chunks in running.chunks():
            found += writer.take(chunks)
            for name, content in found:
                yield event({"type": name, "sequence_number": number} | content, name)
                number += 1
            found = []
        name = f"response.{writer.status}"
        yield event({"type": name, "sequence_number": number, "response": writer.response()}, name)
    except ApiError as error:
        failed = writer.response() | {"status": "failed", "error": {"code": error.code, "message": error.message}}
        yield event({"type": "response.failed", "sequence_number": number, "response": failed}, "response.failed")


@dataclass
class Writer:
    """Makes the items of a response, and the events that tell of them."""

    service: Service
    asked: ResponsesRequest
    items: list[dict[str, Any]] = field(default_factory=list)
    created: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.answer = Answer(self.asked.prompt, self.asked.tools)
        self._blocks = Blocks()

    @property
    def status(self) -> str:
        """Of the response."""
        if self.answer.output is None:
            return "in_progress"
        return "incomplete" if self.answer.finish_reason == "length" else "completed"

    def take(self, chunks: Sequence[Any]) -> list[tuple[str, dict[str, Any]]]:
        """Events of the next chunks."""
        found: list[tuple[str, dict[str, Any]]] = []
        blocks = self._blocks.push(self.answer.take(chunks))
        for kind, value in blocks + (self._blocks.finish() if self.answer.output else []):
            if kind == "start":
                self.items.append(_item(value))
                found += self._begun(value)
            elif kind == "stop":
                found += self._ended()
            else:
                self.items[-1]["content"][0]["text"] += value
                found.append((f"response.{_NAMES[kind]}.delta", self._place() | {"delta": value}))
        return found

    def _place(self) -> dict[str, Any]:
        item = self.items[-1]
        inner = {} if item["type"] == "function_call" else {"content_index": 0}
        return {"item_id": item["id"], "output_index": len(self.items) - 1} | inner

    def _begun(self, value: str | Made) -> list[tuple[str, dict[str, Any]]]:
        item, place = self.items[-1], {"output_index": len(self.items) - 1}
        nothing: dict[str, Any] = {"arguments": ""} if isinstance(value, Made) else {"content": []}
        found: list[tuple[str, dict[str, Any]]] = [("response.output_item.added", place | {"item": item | nothing})]
        if isinstance(value, Made):
            delta = {"delta": item["arguments"]}
            found.append(("response.function_call_arguments.delta", self._place() | delta))
        elif value == "text":
            found.append(("response.content_part.added", self._place() | {"part": dict(item["content"][0])}))
        return found

    def _ended(self) -> list[tuple[str, dict[str, Any]]]:
        item, place = self.items[-1], self._place()
        if item["status"] == "in_progress":
            item["status"] = "completed" if self.status != "incomplete" else "incomplete"
        if item["type"] == "function_call":
            done = {"name": item["name"], "arguments": item["arguments"]}
            found = [("response.function_call_arguments.done", place | done)]
        else:
            part = item["content"][0]
            kind = "text" if item["type"] == "message" else "reasoning"
            found = [(f"response.{_NAMES[kind]}.done", place | {"text": part["text"]})]
            if kind == "text":
                found.append(("response.content_part.done", place | {"part": part}))
        return [*found, ("response.output_item.done", {"output_index": place["output_index"], "item": item})]

    def response(self) -> dict[str, Any]:
        """The whole object as it is now."""
        output = self.answer.output
        cut = {"reason": "max_output_tokens"} if self.status == "incomplete" else None
        found: dict[str, Any] = {"id": self.asked.id, "object": "response", "created_at": int(self.created)}
        found |= {"model": self.service.model.name, "status": self.status, "error": None, "incomplete_details": cut}
        found |= self.asked.said | {"metadata": {}, "previous_response_id": None, "store": False, "output": self.items}
        found["tool_choice"] = found["tool_choice"] or "auto"
        found["text"] = found["text"] or {"format": {"type": "text"}}
        return found | {"usage": None if output is None else self._usage()}

    def _usage(self) -> dict[str, Any]:
        assert self.answer.output is not None
        stats = self.answer.output.stats
        return {
            "input_tokens": stats.prompt_tokens,
            "input_tokens_details": {"cached_tokens": stats.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": stats.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self.answer.reasoning_tokens},
            "total_tokens": stats.prompt_tokens + stats.completion_tokens,
        }


_NAMES = {"text": "output_text", "reasoning": "reasoning_text"}


def _item(value: str | Made) -> dict[str, Any]:
    """An item of the output as it begins; a call is whole."""
    if isinstance(value, Made):
        status = "completed" if value.call.complete else "incomplete"
        call = {"call_id": value.id, "name": value.call.name, "arguments": value.call.arguments}
        return {"id": new_id("fc_"), "type": "function_call", "status": status} | call
    if value == "text":
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return {
            "id": new_id("msg_"), "type": "message", "role": "assistant", "status": "in_progress", "content": [part]
        }  # fmt: skip
    content = [{"type": "reasoning_text", "text": ""}]
    return {"id": new_id("rs_"), "type": "reasoning", "summary": [], "status": "in_progress", "content": content}
