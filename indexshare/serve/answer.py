"""A conversation's next turn as it comes out of the engine: the source of every interface's events."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from indexshare.engine.outputs import Chunk, CompletionOutput, TokenLogprobs
from indexshare.serve.model import ChatPrompt
from indexshare.text.answer_parser import AnswerParser, Call, Piece, Reasoning, Text


@dataclass
class Made:
    """A call with the name that its result is to be sent back under."""

    call: Call
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


class Answer:
    """One answer, read chunk by chunk.

    Args:
        prompt: what it answers.
        tools: those that may be called.
    """

    def __init__(self, prompt: ChatPrompt, tools: Sequence[dict[str, Any]]) -> None:
        self._parser = AnswerParser(in_reasoning=prompt.in_reasoning, reasoning=prompt.reasoning, tools=tools)
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self.calls: list[Made] = []
        self.logprobs: list[TokenLogprobs] = []
        self.reasoning_tokens = 0
        self.output: CompletionOutput | None = None

    def take(self, chunks: Sequence[Chunk]) -> list[Reasoning | Text | Made]:
        """What the next chunks add."""
        pieces: list[Piece] = []
        for chunk in chunks:
            self.reasoning_tokens += self._parser.in_reasoning and chunk.token_id is not None
            pieces += self._parser.push(chunk.text)
            if chunk.logprobs is not None:
                self.logprobs.append(chunk.logprobs)
            if chunk.output is not None:
                self.output = chunk.output
                pieces += self._parser.finish()
        return [self._kept(piece) for piece in pieces]

    def _kept(self, piece: Piece) -> Reasoning | Text | Made:
        if isinstance(piece, Call):
            self.calls.append(Made(piece))
            return self.calls[-1]
        (self._reasoning if isinstance(piece, Reasoning) else self._text).append(piece.text)
        return piece

    @property
    def reasoning(self) -> str:
        """All of it so far."""
        return "".join(self._reasoning)

    @property
    def text(self) -> str:
        """All text so far; nothing where only space stands around calls."""
        text = "".join(self._text)
        return text if text.strip() or not self.calls else ""

    @property
    def finish_reason(self) -> str:
        """Why it ended: `stop`, `length`, `abort`, or `tool_calls` where a whole one was made."""
        reason = "stop" if self.output is None else self.output.finish_reason
        complete = bool(self.calls) and self.calls[-1].call.complete
        return "tool_calls" if reason == "stop" and complete else reason


class Blocks:
    """Pieces of an answer as blocks, one kind each, in the order in which they came.

    Space alone makes no block of text: it waits for what follows, and is left out before a call or at the end.
    """

    def __init__(self) -> None:
        self._kind = ""
        self._space = ""
        self.number = -1

    def push(self, pieces: Sequence[Reasoning | Text | Made]) -> list[tuple[str, Any]]:
        """Events: ("start", a kind or a call), ("text" or "reasoning", more of it) and ("stop", kind)."""
        events: list[tuple[str, Any]] = []
        for piece in pieces:
            if isinstance(piece, Made):
                events += [*self.finish(), ("start", piece), ("stop", "call")]
                self.number += 1
                continue
            kind = "text" if isinstance(piece, Text) else "reasoning"
            text = piece.text
            if kind == "text" and self._kind != "text":
                self._space, text = self._space + text, ""
                if self._space.strip():
                    text, self._space = self._space, ""
            if text and kind != self._kind:
                events += [*self.finish(), ("start", kind)]
                self._kind = kind
                self.number += 1
            if text:
                events.append((kind, text))
        return events

    def finish(self) -> list[tuple[str, Any]]:
        """The end of the block that is open, if one is."""
        kind, self._kind, self._space = self._kind, "", ""
        return [("stop", kind)] if kind else []
