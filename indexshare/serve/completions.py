"""`/v1/completions`: texts continued; echo, log-probabilities of prompts, token ids in and out."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from indexshare.config.arguments import shown
from indexshare.engine.outputs import Chunk, CompletionOutput, RequestStats, TokenLogprobs
from indexshare.engine.params import SamplingParams
from indexshare.engine.structure import Structure
from indexshare.serve.body import Body
from indexshare.serve.errors import ApiError, bad
from indexshare.serve.model import ServedModel
from indexshare.serve.sampling import (
    FIELDS,
    MOST_LOGPROBS,
    choices,
    each_choice,
    format_grammar,
    sampling_params,
    wants_usage,
)
from indexshare.serve.service import Running, Service, new_id, read_body
from indexshare.serve.stream import EventStream, event, until_gone
from indexshare.serve.usage import openai_usage

_KNOWN = (
    *FIELDS, "prompt", "max_tokens", "echo", "logprobs", "prompt_logprobs", "suffix", "best_of",
    "return_tokens_as_token_ids", "skip_special_tokens", "add_special_tokens",
)  # fmt: skip
_MOST_PROMPTS = 1024


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A request as it is understood; `params` has a limit of at least 1 where `max_tokens` may be 0."""

    id: str
    prompts: list[list[int]]
    params: SamplingParams
    max_tokens: int
    count: int
    echo: bool
    prompt_logprobs: int | None
    as_ids: bool
    return_ids: bool
    usage: bool


def read_completion(body: Body, model: ServedModel) -> Completion:
    """Check everything before any work; ApiError for what is wrong."""
    model.check_name(body.text("model"))
    if body.get("suffix"):
        raise bad("this model does not complete in the middle; leave suffix out", "suffix")
    whole = body.boolean("add_special_tokens", True)
    prompts = [model.prompt_ids(prompt, whole=whole) for prompt in _prompts(body.get("prompt"))]
    count = choices(body)
    if "best_of" in body and body.integer("best_of", 1) != count:
        raise bad(f"best_of is {body.get('best_of')}; expected the number n of answers, which are all given", "best_of")
    logprobs, echo = body.integer("logprobs", 0, MOST_LOGPROBS), body.boolean("echo")
    limit = body.integer("max_tokens", 0)
    limit = 16 if limit is None else limit
    if limit == 0 and not echo and "prompt_logprobs" not in body:
        raise bad("max_tokens is 0; expected 1 or more, or echo to have the prompt given back", "max_tokens")
    grammar = format_grammar(body)
    structure = None if grammar is None else Structure(grammar=grammar)
    of_prompt = body.integer("prompt_logprobs", 0, MOST_LOGPROBS)
    return Completion(
        id=new_id("cmpl-"),
        prompts=prompts,
        params=sampling_params(
            body,
            model,
            max_tokens=max(1, limit),
            logprobs=logprobs,
            structure=structure,
            skip_special=body.boolean("skip_special_tokens", True),
        ),
        max_tokens=limit,
        count=count,
        echo=echo,
        prompt_logprobs=logprobs if of_prompt is None and echo else of_prompt,
        as_ids=body.boolean("return_tokens_as_token_ids"),
        return_ids=body.boolean("return_token_ids"),
        usage=wants_usage(body),
    )


def _prompts(value: Any) -> list[Any]:
    """A text, ids, or a list of either, as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(each, int) and not isinstance(each, bool) for each in value):
            return [value]
        if all(isinstance(each, str | list) for each in value) and len(value) <= _MOST_PROMPTS:
            return value
    raise bad(f"prompt is {shown(value)}; expected a text, token ids, or a list of up to {_MOST_PROMPTS}", "prompt")


async def completions(request: Request) -> Response:
    """The endpoint."""
    service: Service = request.app.state.service
    content = await read_body(request, service.limits)
    body = Body(content, _KNOWN)
    asked = read_completion(body, service.model)
    if not body.boolean("stream"):
        return await until_gone(request, _reply(service, asked))
    if asked.prompt_logprobs is not None or asked.max_tokens == 0:
        raise bad("log-probabilities of prompts are not streamed; leave out stream", "stream")
    each = each_choice(asked.params, asked.count)
    running = service.start([(ids, params) for ids in asked.prompts for params in each])
    return EventStream(_events(service, asked, running), running.close)


async def _reply(service: Service, asked: Completion) -> Response:
    outputs: list[CompletionOutput] = []
    if asked.max_tokens:
        each = each_choice(asked.params, asked.count)
        running = service.start([(ids, params) for ids in asked.prompts for params in each])
        outputs = await running.outputs()
    found = []
    for number, ids in enumerate(asked.prompts):
        scores = None if asked.prompt_logprobs is None else await _scores(service, ids, asked.prompt_logprobs)
        for place in range(number * asked.count, (number + 1) * asked.count):
            found.append(_choice(service.model, asked, place, ids, outputs[place] if outputs else None, scores))
    usage = openai_usage([output.stats for output in outputs], asked.count)
    if not outputs:
        tokens = sum(map(len, asked.prompts))
        usage |= {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse(_envelope(service, asked) | {"choices": found, "usage": usage})


async def _scores(service: Service, ids: list[int], top: int) -> Sequence[TokenLogprobs]:
    if len(ids) > min(service.model.max_context, service.model.cache_tokens) + 1:
        raise bad(f"the prompt has {len(ids)} tokens, more than the context holds", "prompt", "context_length_exceeded")
    if len(ids) == 1:
        return []
    service.admit()
    return await service.engine.score(ids, top)


def _envelope(service: Service, asked: Completion) -> dict[str, Any]:
    return {"id": asked.id, "object": "text_completion", "created": int(time.time()), "model": service.model.name}


def _choice(
    model: ServedModel,
    asked: Completion,
    index: int,
    ids: list[int],
    output: CompletionOutput | None,
    scores: Sequence[TokenLogprobs] | None,
) -> dict[str, Any]:
    """One answer, with its prompt before it if that was asked for."""
    prompt = model.tokenizer.decode(ids) if asked.echo else ""
    text = "" if output is None else output.text
    choice: dict[str, Any] = {"index": index, "text": prompt + text, "logprobs": None}
    choice["finish_reason"] = "length" if output is None else output.finish_reason
    if asked.params.logprobs is not None:
        entries: list[TokenLogprobs | int] = [ids[0], *(scores or [])] if asked.echo else []
        entries += [] if output is None or output.logprobs is None else output.logprobs
        choice["logprobs"] = legacy_logprobs(model, entries, as_ids=asked.as_ids)
    if scores is not None:
        choice["prompt_logprobs"] = [None, *(_by_id(model, entry) for entry in scores)]
    if asked.return_ids:
        choice |= {"prompt_token_ids": ids, "token_ids": [] if output is None else output.token_ids}
    return choice


def legacy_logprobs(
    model: ServedModel, entries: Sequence[TokenLogprobs | int], *, start: int = 0, as_ids: bool = False
) -> dict[str, Any]:
    """The form of `/v1/completions`; an id alone is a first token, with nothing before it."""

    def name(token: int) -> str:
        return f"token_id:{token}" if as_ids else model.token_text(token)

    tokens, values, tops, offsets, at = [], [], [], [], start
    for entry in entries:
        token = entry if isinstance(entry, int) else entry.token_id
        tokens.append(name(token))
        values.append(None if isinstance(entry, int) else entry.logprob)
        tops.append(None if isinstance(entry, int) else {name(i): value for i, value in entry.top})
        offsets.append(at)
        at += len(model.token_text(token))
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def _by_id(model: ServedModel, entry: TokenLogprobs) -> dict[str, Any]:
    pairs = [(entry.token_id, entry.logprob), *entry.top]
    return {str(i): {"logprob": value, "decoded_token": model.token_text(i)} for i, value in pairs}


async def _events(service: Service, asked: Completion, running: Running) -> AsyncIterator[str]:
    """Chunks of all answers as they come, what they cost, and the end."""
    envelope, model = _envelope(service, asked), service.model
    stats: dict[int, RequestStats] = {}
    try:
        if asked.echo:
            for number in range(len(running.tickets)):
                text = model.tokenizer.decode(asked.prompts[number // asked.count])
                yield event(envelope | {"choices": [_delta(model, asked, number, [], text)]})
        async for number, chunks in running.chunks():
            yield event(envelope | {"choices": [_delta(model, asked, number, chunks, "")]})
            if chunks[-1].output is not None:
                stats[number] = chunks[-1].output.stats
        if asked.usage:
            ordered = [stats[number] for number in sorted(stats)]
            yield event(envelope | {"choices": [], "usage": openai_usage(ordered, asked.count)})
    except ApiError as error:
        yield event(error.openai())
    yield event("[DONE]")


def _delta(model: ServedModel, asked: Completion, number: int, chunks: Sequence[Chunk], text: str) -> dict[str, Any]:
    output = chunks[-1].output if chunks else None
    choice: dict[str, Any] = {"index": number, "text": text + "".join(chunk.text for chunk in chunks)}
    entries = [chunk.logprobs for chunk in chunks if chunk.logprobs is not None]
    choice["logprobs"] = legacy_logprobs(model, entries, as_ids=asked.as_ids) if entries else None
    choice["finish_reason"] = None if output is None else output.finish_reason
    if asked.return_ids:
        choice["token_ids"] = [chunk.token_id for chunk in chunks if chunk.token_id is not None]
    return choice
