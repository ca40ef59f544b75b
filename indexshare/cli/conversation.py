"""A conversation with a model in this process: its messages, and answers as they come."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexshare.text.answer_parser import AnswerParser, Call, Piece, Reasoning, Text
from indexshare.text.chat_template import ChatTemplate
from indexshare.text.conversation import ends_in_reasoning, plain_messages, plain_tools
from indexshare.text.effort import thinking_variables
from indexshare.text.files import replacing

if TYPE_CHECKING:
    from indexshare.engine.llm import LLM
    from indexshare.engine.outputs import RequestStats
    from indexshare.engine.params import SamplingParams


@dataclass
class Conversation:
    """What was said, and how the next answer is to be made.

    Attributes:
        llm, template: the model's.
        params: how tokens are chosen; `max_tokens` is cut to the room there is.
        effort: a word of `text.effort`, None for the template's own default.
        tools: those that the model may call.
        messages: as in chat requests.
        stats: of the last answer, None before it.
    """

    llm: LLM
    template: ChatTemplate
    params: SamplingParams
    effort: str | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    stats: RequestStats | None = None

    def prompt(self) -> str:
        """The conversation as the template writes it, ready for an answer."""
        variables = thinking_variables(self.effort, {}, self.template.variables)
        offered = plain_tools(self.tools) or None
        return self.template.render(plain_messages(self.messages), tools=offered, **variables)

    def answer(self, on_prefill: Callable[[int, int], None] | None = None) -> Iterator[Piece]:
        """Pieces of the next answer, which joins the messages, also when it is cut off.

        Raises:
            ValueError: the conversation does not fit into the context any more.
        """
        assert self.llm.tokenizer is not None
        text = self.prompt()
        ids = self.llm.tokenizer.encode(text)
        room = min(self.llm.max_context, self.llm.cache.num_tokens + 1) - len(ids)
        params = replace(self.params, skip_special=False, max_tokens=max(1, min(self.params.max_tokens, room)))
        parser = AnswerParser(in_reasoning=ends_in_reasoning(text), tools=self.tools)
        pieces: list[Piece] = []
        try:
            for chunk in self.llm.stream(ids, params, on_prefill=on_prefill):
                found = parser.push(chunk.text)
                if chunk.output is not None:
                    self.stats = chunk.output.stats
                    found += parser.finish()
                pieces += found
                yield from found
        finally:
            self.messages.append(_message(pieces))

    def save(self, file: Path) -> None:
        """Write everything that was said."""
        content = {"messages": self.messages, "effort": self.effort}
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def load(self, file: Path) -> None:
        """Go on with what `save` has written; ValueError for a file that holds no conversation."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            messages, effort = content["messages"], content.get("effort")
            plain_messages(messages)
        except (ValueError, KeyError, TypeError, AttributeError, UnicodeError) as error:
            raise ValueError(f"{file} holds no conversation ({error}); expected what /save has written") from None
        self.messages, self.effort = messages, effort


def _message(pieces: list[Piece]) -> dict[str, Any]:
    """Pieces of an answer as a message of the conversation."""
    message: dict[str, Any] = {"role": "assistant"}
    message["content"] = "".join(piece.text for piece in pieces if isinstance(piece, Text))
    reasoning = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
    calls = [piece for piece in pieces if isinstance(piece, Call) and piece.complete]
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{n}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for n, call in enumerate(calls)
        ]
    return message
