"""From a request's fields to the engine's parameters: how tokens are chosen, and what the text must look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from indexshare.config.arguments import shown
from indexshare.engine.params import SEED_BITS, SamplingParams
from indexshare.engine.structure import (
    Structure,
    choice_grammar,
    ebnf_grammar,
    json_grammar,
    regex_grammar,
    tools_grammar,
)
from indexshare.serve.body import Body
from indexshare.serve.errors import bad
from indexshare.serve.model import ChatPrompt, ServedModel

MOST_CHOICES = 64
MOST_LOGPROBS = 100
FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
    "stop", "stop_token_ids", "ignore_eos", "logit_bias", "n", "model", "stream", "stream_options",
    "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "response_format",
    "return_token_ids",
)  # fmt: skip


def sampling_params(body: Body, model: ServedModel, **fixed: Any) -> SamplingParams:
    """Parameters of a request: its fields, what the model's file says where it is silent, and `fixed` ones."""
    numbers: dict[str, Any] = {
        "temperature": body.number("temperature", 0, 100),
        "top_p": body.number("top_p", 0, 1),
        "min_p": body.number("min_p", 0, 1),
        "presence_penalty": body.number("presence_penalty", -2, 2),
        "frequency_penalty": body.number("frequency_penalty", -2, 2),
        "repetition_penalty": body.number("repetition_penalty", 0, 100),
        "top_k": body.integer("top_k", -1),
        "seed": body.integer("seed", -(2**63), 2**64 - 1),
    }
    given = {name: value for name, value in numbers.items() if value is not None}
    if given.get("top_k") == -1:  # some clients' word for all
        given["top_k"] = 0
    if "seed" in given:
        given["seed"] %= 2**SEED_BITS
    if "stop" in body:
        given["stop"] = body.get("stop")
    if body.get("stop_token_ids"):
        given["stop_token_ids"] = body.get("stop_token_ids")
    if "logit_bias" in body:
        given["logit_bias"] = _biases(body.object("logit_bias"))
    given["ignore_eos"] = body.boolean("ignore_eos")
    try:
        return SamplingParams(**model.defaults.sampling() | given | fixed)
    except ValueError as error:
        raise bad(str(error)) from None


def _biases(said: Mapping[str, Any]) -> dict[int, Any]:
    """JSON has texts for keys."""
    try:
        return {int(token): value for token, value in said.items()}
    except ValueError:
        raise bad(f"logit_bias is {shown(said)}; expected token ids for keys", "logit_bias") from None


def choices(body: Body) -> int:
    """How many answers are wanted."""
    return body.integer("n", 1, MOST_CHOICES) or 1


def each_choice(params: SamplingParams, count: int) -> list[SamplingParams]:
    """The parameters of every answer: the seeds count on from the first one's."""
    if params.seed is None:
        return [params] * count
    return [replace(params, seed=(params.seed + number) % 2**SEED_BITS) for number in range(count)]


def wants_usage(body: Body) -> bool:
    """Whether a stream is to end with what it cost."""
    options = body.object("stream_options")
    return bool(options.get("include_usage"))


def format_grammar(body: Body) -> str | None:
    """The grammar that `response_format` or a field of the guided kind asks for."""
    form = body.object("response_format")
    kind = form.get("type", "text")
    if kind == "json_object":
        return json_grammar(None)
    if kind == "json_schema":
        said = form.get("json_schema")
        schema = said.get("schema") if isinstance(said, Mapping) and "schema" in said else form.get("schema")
        if not isinstance(schema, Mapping):
            raise bad(f"response_format is {shown(form)}; expected json_schema with a schema", "response_format")
        return json_grammar(schema)
    if kind not in ("text", "regex", "grammar"):
        raise bad(
            f"response_format has the type {kind!r}; expected text, json_object or json_schema", "response_format"
        )
    guided = {name.removeprefix("guided_"): body.get(name) for name in body.content if name.startswith("guided_")}
    return _guided(guided | body.object("structured_outputs"))


def _guided(said: Mapping[str, Any]) -> str | None:
    for name, value in said.items():
        if name == "json" and isinstance(value, Mapping):
            return json_grammar(value)
        if name == "regex" and isinstance(value, str):
            return regex_grammar(value)
        if name == "choice" and isinstance(value, list) and value and all(isinstance(each, str) for each in value):
            return choice_grammar(value)
        if name == "grammar" and isinstance(value, str):
            return ebnf_grammar(value)
        raise bad(f"structured output {name} is {shown(value)}; expected json, regex, choice or grammar", name)
    return None


def chat_structure(
    body: Body, prompt: ChatPrompt, choice: Any, *, parallel: bool, budget: int | None
) -> Structure | None:
    """What an answer in a conversation must look like.

    Args:
        body: of the request.
        prompt: with the tools that are offered.
        choice: `tool_choice`: none, auto, required, or a tool by name.
        parallel: whether several calls may be made.
        budget: most tokens of reasoning.
    """
    grammar = format_grammar(body)
    tools, required = chosen_tools(prompt.tools, choice)
    if tools and (required or any(tool["function"].get("strict") for tool in tools) or not parallel):
        if grammar is not None:
            raise bad("a response_format and required or strict tools exclude each other; leave one out", "tools")
        grammar = tools_grammar(tools, required=required, parallel=parallel)
    if grammar is None and (budget is None or not prompt.in_reasoning):
        return None
    return Structure(grammar=grammar, reasoning_tokens=budget, in_reasoning=prompt.in_reasoning)


def chosen_tools(tools: Sequence[dict[str, Any]], choice: Any) -> tuple[Sequence[dict[str, Any]], bool]:
    """The tools that may be called, and whether one must be."""
    if choice in (None, "auto"):
        return tools, False
    if choice == "none":
        return [], False
    name = None
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    if choice != "required" and not isinstance(name, str):
        raise bad(f"tool_choice is {shown(choice)}; expected none, auto, required, or a function's name", "tool_choice")
    found = [tool for tool in tools if name is None or tool["function"]["name"] == name]
    if not found:
        raise bad(f"tool_choice is {shown(choice)}, but tools has no such tool", "tool_choice")
    return found, True
