"""`/v1/chat/completions`: conversations, with reasoning, tools, structured answers and streaming."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from indexshare.config.arguments import shown
from indexshare.engine.outputs import Chunk, TokenLogprobs
from indexshare.engine.params import SamplingParams
from indexshare.serve.answer import Answer, Made
from indexshare.serve.body import Body
from indexshare.serve.errors import ApiError, bad
from indexshare.serve.model import ChatPrompt, ServedModel
from indexshare.serve.sampling import (
    FIELDS,
    MOST_LOGPROBS,
    chat_structure,
    choices,
    chosen_tools,
    each_choice,
    sampling_params,
    wants_usage,
)
from indexshare.serve.service import Running, Service, new_id, read_body
from indexshare.serve.stream import EventStream, event, until_gone
from indexshare.serve.usage import openai_usage, timings
from indexshare.text.answer_parser import Reasoning, Text

_KNOWN = (
    *FIELDS, "messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "tools", "tool_choice",
    "parallel_tool_calls", "reasoning_effort", "reasoning", "thinking", "thinking_token_budget", "chat_template_kwargs",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A request as it is understood."""

    id: str
    prompt: ChatPrompt
    params: SamplingParams
    tools: Sequence[dict[str, Any]]
    count: int = 1
    usage: bool = False
    return_ids: bool = False


def effort_of(body: Body) -> tuple[str | None, dict[str, Any]]:
    """The effort asked for, and variables of the template: `chat_template_kwargs`, and Z.ai's `thinking`."""
    said = body.object("reasoning")
    effort = body.text("reasoning_effort") or said.get("effort")
    thinking, variables = body.object("thinking"), {}
    if thinking:
        if thinking.get("type") not in ("enabled", "disabled", "adaptive", None):
            raise bad(f"thinking is {shown(thinking)}; expected the type enabled or disabled", "thinking")
        if thinking.get("type") == "disabled" and effort is None:
            effort = "none"
        if isinstance(thinking.get("clear_thinking"), bool):
            variables["clear_thinking"] = thinking["clear_thinking"]
    return effort, variables | body.object("chat_template_kwargs")


def budget_of(body: Body) -> int | None:
    """Most tokens of reasoning, from any of the fields that say it."""
    said = {"budget_tokens": body.object("thinking").get("budget_tokens")}
    said["max_tokens"] = body.object("reasoning").get("max_tokens")
    own = body.integer("thinking_token_budget", 0)
    for name, value in said.items():
        if own is None and value is not None:
            own = Body({name: value}, (name,)).integer(name, 0)
    return own


def read_chat(body: Body, model: ServedModel) -> ChatRequest:
    """Check everything before any work; ApiError for what is wrong."""
    model.check_name(body.text("model"))
    effort, variables = effort_of(body)
    tools = None if body.get("tool_choice") == "none" else body.get("tools")
    prompt = model.chat_prompt(body.get("messages"), tools=tools, effort=effort, variables=variables)
    choice, parallel = body.get("tool_choice"), body.boolean("parallel_tool_calls", True)
    structure = chat_structure(body, prompt, choice, parallel=parallel, budget=budget_of(body))
    logprobs = None
    if body.boolean("logprobs"):
        logprobs = body.integer("top_logprobs", 0, MOST_LOGPROBS) or 0
    elif "top_logprobs" in body:
        raise bad("top_logprobs needs logprobs: true", "top_logprobs")
    params = sampling_params(
        body, model, max_tokens=answer_limit(body, model, len(prompt.ids)), logprobs=logprobs, structure=structure,
        skip_special=False,
    )  # fmt: skip
    return ChatRequest(
        id=new_id("chatcmpl-"),
        prompt=prompt,
        params=params,
        tools=chosen_tools(prompt.tools, choice)[0],
        count=choices(body),
        usage=wants_usage(body),
        return_ids=body.boolean("return_token_ids"),
    )


def answer_limit(body: Body, model: ServedModel, prompt_len: int) -> int:
    """Most tokens of an answer: what is asked for, else what the model's file says, in the room there is."""
    for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"):
        limit = body.integer(name, 1)
        if limit is not None:
            return limit
    room = max(1, model.room(prompt_len))
    return min(room, model.defaults.max_new_tokens or room)


async def chat_completions(request: Request) -> Response:
    """The endpoint."""
    service: Service = request.app.state.service
    body = Body(await read_body(request, service.limits), _KNOWN)
    asked = read_chat(body, service.model)
    running = service.start([(asked.prompt.ids, params) for params in each_choice(asked.params, asked.count)])
    if body.boolean("stream"):
        return EventStream(_events(service, asked, running), running.close)
    return await until_gone(request, _reply(service, asked, running))


async def collect(running: Running, answers: Sequence[Answer]) -> None:
    """Read every answer to its end."""
    try:
        async for number, chunks in running.chunks():
            answers[number].take(chunks)
    finally:
        running.close()


async def _reply(service: Service, asked: ChatRequest, running: Running) -> Response:
    answers = [Answer(asked.prompt, asked.tools) for _ in range(asked.count)]
    await collect(running, answers)
    found = [_choice(service.model, asked, number, answer) for number, answer in enumerate(answers)]
    return JSONResponse(_envelope(service, asked, "") | {"choices": found} | _cost(answers))


def _cost(answers: Sequence[Answer]) -> dict[str, Any]:
    stats = [answer.output.stats for answer in answers if answer.output is not None]
    usage = openai_usage(stats, max(1, len(stats)), sum(answer.reasoning_tokens for answer in answers))
    return {"usage": usage, "timings": timings(stats[0])} if stats else {"usage": usage}


def _envelope(service: Service, asked: ChatRequest, kind: str) -> dict[str, Any]:
    name = f"chat.completion{kind}"
    return {"id": asked.id, "object": name, "created": int(time.time()), "model": service.model.name}


def _choice(model: ServedModel, asked: ChatRequest, number: int, answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if answer.calls else "")}
    if answer.reasoning:
        message |= {"reasoning_content": answer.reasoning, "reasoning": answer.reasoning}
    if answer.calls:
        message["tool_calls"] = [_call(made) for made in answer.calls]
    choice: dict[str, Any] = {"index": number, "message": message, "finish_reason": answer.finish_reason}
    choice["logprobs"] = None
    if asked.params.logprobs is not None:
        choice["logprobs"] = {"content": [_logprob(model, entry) for entry in answer.logprobs]}
    if asked.return_ids and answer.output is not None:
        choice |= {"prompt_token_ids": asked.prompt.ids, "token_ids": answer.output.token_ids}
    return choice


def _call(made: Made) -> dict[str, Any]:
    function = {"name": made.call.name, "arguments": made.call.arguments}
    return {"id": made.id, "type": "function", "function": function}


def _logprob(model: ServedModel, entry: TokenLogprobs) -> dict[str, Any]:
    def one(token: int, value: float) -> dict[str, Any]:
        data = model.token_bytes(token)
        return {"token": data.decode("utf-8", errors="replace"), "logprob": value, "bytes": list(data)}

    return one(entry.token_id, entry.logprob) | {"top_logprobs": [one(i, value) for i, value in entry.top]}


async def _events(service: Service, asked: ChatRequest, running: Running) -> AsyncIterator[str]:
    envelope = _envelope(service, asked, ".chunk")
    answers = [Answer(asked.prompt, asked.tools) for _ in range(asked.count)]

    def delta(number: int, content: dict[str, Any], **more: Any) -> str:
        choice = {"index": number, "delta": content, "logprobs": None, "finish_reason": None} | more
        return event(envelope | {"choices": [choice]})

    try:
        for number in range(asked.count):
            yield delta(number, {"role": "assistant", "content": ""})
        async for number, chunks in running.chunks():
            answer, before = answers[number], len(answers[number].calls)
            pieces = answer.take(chunks)
            more = _extra(service.model, asked, chunks)
            for piece in pieces:
                index = before
                before += isinstance(piece, Made)
                yield delta(number, _delta(piece, index), **more)
                more = {}
            if more:
                yield delta(number, {}, **more)
            if answer.output is not None:
                yield delta(number, {}, finish_reason=answer.finish_reason)
        if asked.usage:
            yield event(envelope | {"choices": []} | _cost(answers))
    except ApiError as error:
        yield event(error.openai())
    yield event("[DONE]")


def _extra(model: ServedModel, asked: ChatRequest, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """What goes with the next delta: log-probabilities and ids, where they were asked for."""
    more: dict[str, Any] = {}
    entries = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    if entries:
        more["logprobs"] = {"content": [_logprob(model, entry) for entry in entries]}
    if asked.return_ids:
        more["token_ids"] = [chunk.token_id for chunk in chunks if chunk.token_id is not None]
    return more


def _delta(piece: Reasoning | Text | Made, index: int) -> dict[str, Any]:
    if isinstance(piece, Reasoning):
        return {"reasoning_content": piece.text, "reasoning": piece.text}
    if isinstance(piece, Text):
        return {"content": piece.text}
    return {"tool_calls": [{"index": index} | _call(piece)]}
