"""`indexshare chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from indexshare.cli.chat_tools import TOOLS, run_tool
from indexshare.cli.conversation import Conversation
from indexshare.cli.options import ModelOptions, SamplingOptions
from indexshare.cli.output import note, write
from indexshare.cli.prompts import read_prompt
from indexshare.cli.streaming import ReadingBar, cost_lines
from indexshare.text.answer_parser import KEY, Call, Reasoning, Text
from indexshare.text.effort import EFFORTS
from indexshare.text.files import check_can_write, plural

_MOST_ROUNDS = 8  # of calls before an answer
HELP = f"""\
/read FILE    put a file into the conversation, before your next message
/think LEVEL  how much to think: {", ".join(EFFORTS)}
/tools        offer the tools or stop offering them: {", ".join(tool["function"]["name"] for tool in TOOLS)}
/save FILE    write the conversation to a file
/load FILE    go on with one that was saved
/stats        what the last answer cost
/clear        forget what was said
/quit         end; so does Ctrl+D
Ctrl+C stops an answer and not the program. A line that ends with \\ goes on in the next one."""


def chat(
    model: str = "nano",
    /,
    *,
    system: str | None = None,
    think: str | None = None,
    tools: Annotated[bool, Parameter(negative="")] = False,
    load: Path | None = None,
    model_options: ModelOptions | None = None,
    sampling: SamplingOptions | None = None,
) -> None:
    """Talk to a model; answers appear as they are written, reasoning dimmed. /help lists what can be done.

    Without a terminal every line of standard input is a message, and answers alone are printed.

    Parameters
    ----------
    model
        Name of a shipped model, or a model directory. It needs a chat template.
    system
        What the model is told before the conversation.
    think
        How much to think: none, minimal, low, medium, high, xhigh or max.
    tools
        Offer tools: a calculator, a clock, a search in the files of the current folder.
    load
        Go on with a conversation that was saved.
    """
    options = replace(model_options or ModelOptions(), model=model)
    talk = _begin(options, sampling or SamplingOptions())
    if system is not None:
        talk.messages.append({"role": "system", "content": system})
    if load is not None:
        talk.load(load)
    session = Session(talk)
    if think is not None:
        session.think(think)
    if tools:
        session.tools("")
    session.run()


def _begin(options: ModelOptions, sampling: SamplingOptions) -> Conversation:
    """The model, loaded; ValueError for one that knows no conversations, before that."""
    from indexshare.config.shipped import model_directory
    from indexshare.text.chat_template import ChatTemplate

    template = ChatTemplate.load(model_directory(options.model))
    if template is None:
        raise ValueError(
            f"{options.model} has no chat template, so it knows no conversations; use: indexshare generate --model "
            f"{options.model}"
        )
    defaults, tokenizer = options.generation(), options.tokenizer()
    params = sampling.params(defaults)
    if sampling.max_tokens is None and defaults.max_new_tokens is None:
        params = replace(params, max_tokens=options.context())
    return Conversation(options.load(tokenizer), template, params)


class Session:
    """The loop: lines of a user, commands and answers."""

    def __init__(self, talk: Conversation) -> None:
        self.talk = talk
        self._attached: list[str] = []
        self._terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
        self._commands: dict[str, Callable[[str], object]] = {
            "read": self.read, "think": self.think, "tools": self.tools, "save": self.save, "load": self.load,
            "stats": self.stats, "clear": self.clear, "help": lambda _: write(HELP + "\n"),
        }  # fmt: skip

    def run(self) -> None:
        """Until /quit or the end of input."""
        if self._terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  lines can be edited, and earlier ones come back

            note("/help says what can be done; /quit or Ctrl+D ends")
        while True:
            try:
                line = self._line()
            except EOFError:
                return
            except KeyboardInterrupt:
                note("\n(/quit or Ctrl+D ends)")
                continue
            if line.strip() in ("/quit", "/exit"):
                return
            if line.strip():
                self._take(line)

    def _line(self) -> str:
        """What the user says, over several lines if they end with a backslash."""
        line = input("> " if self._terminal else "")
        while line.endswith("\\"):
            line = line[:-1] + "\n" + input("  " if self._terminal else "")
        return line

    def _take(self, line: str) -> None:
        name, _, rest = line[1:].partition(" ")
        if line.startswith("/") and name in self._commands:
            try:
                self._commands[name](rest.strip())
            except (ValueError, OSError) as error:
                note(f"error: {' '.join(str(error).split())}", style="red")
        elif line.startswith("/"):
            note(f"error: there is no command /{name}; /help lists them", style="red")
        else:
            self._ask(line)

    def _ask(self, line: str) -> None:
        """Answer a message, running the tools that are called on the way."""
        before = len(self.talk.messages)
        self.talk.messages.append({"role": "user", "content": "".join([*self._attached, line])})
        try:
            for _ in range(_MOST_ROUNDS):
                self._answer()
                if not self._run_tools():
                    break
            self._attached.clear()
        except KeyboardInterrupt:
            write("\n")
            note("(stopped)")
            self._attached.clear()
        except ValueError as error:
            del self.talk.messages[before:]
            note(f"error: {' '.join(str(error).split())}", style="red")

    def _answer(self) -> None:
        shown = ""
        with ReadingBar() as reading:
            for piece in self.talk.answer(reading):
                reading.stop()
                if isinstance(piece, Call):
                    note(f"{piece.name} {piece.arguments}" + ("" if piece.complete else " (cut off)"), style="cyan")
                elif isinstance(piece, Text) or self._terminal:
                    if isinstance(piece, Text) and shown == "reasoning":
                        write("\n")
                    write(piece.text, style="dim" if isinstance(piece, Reasoning) else None)
                    shown = "reasoning" if isinstance(piece, Reasoning) else "text"
        write("\n")

    def _run_tools(self) -> bool:
        """Run what the last message calls; False if it calls nothing."""
        calls = self.talk.messages[-1].get("tool_calls", [])
        for call in calls:
            result = run_tool(call["function"]["name"], call["function"]["arguments"])
            note(result if len(result) < 400 else result[:400] + " ...", style="cyan")
            self.talk.messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        return bool(calls)

    def read(self, name: str) -> None:
        """Put a file before the next message."""
        from indexshare.text.tokenizer import file_header

        if not name:
            raise ValueError("/read needs the name of a file")
        text = file_header(name) + read_prompt(name)
        assert self.talk.llm.tokenizer is not None
        self._attached.append(text if text.endswith("\n") else text + "\n")
        note(f"{name}: {plural(len(self.talk.llm.tokenizer.encode(text)), 'token')}, before your next message")

    def think(self, level: str) -> None:
        """Set the effort."""
        from indexshare.text.effort import thinking_variables

        thinking_variables(level or None, {}, self.talk.template.variables)
        self.talk.effort = level or None
        note(f"thinking: {level or 'as the model does by itself'}")

    def tools(self, _: str) -> None:
        """Offer the tools, or stop."""
        template = self.talk.template
        if "tools" not in template.variables or KEY not in template.source:
            raise ValueError("this model's chat template has no tools, or writes calls in a form that is not read here")
        self.talk.tools = [] if self.talk.tools else list(TOOLS)
        names = ", ".join(tool["function"]["name"] for tool in self.talk.tools)
        note(f"tools: {names or 'none'}")

    def save(self, name: str) -> None:
        """Write the conversation."""
        if not name:
            raise ValueError("/save needs the name of a file")
        check_can_write(Path(name), replaces=[b"{"])
        self.talk.save(Path(name))
        note(f"{plural(len(self.talk.messages), 'message')} in {name}")

    def load(self, name: str) -> None:
        """Go on with another conversation."""
        if not name:
            raise ValueError("/load needs the name of a file")
        self.talk.load(Path(name))
        note(f"{plural(len(self.talk.messages), 'message')} from {name}")

    def stats(self, _: str) -> None:
        """What the last answer cost."""
        if self.talk.stats is None:
            note("nothing was answered yet")
            return
        for line in cost_lines(self.talk.stats, context=f"{plural(self.talk.stats.prompt_tokens, 'token')} of prompt"):
            note(line)

    def clear(self, _: str) -> None:
        """Forget everything but what the system was told."""
        self.talk.messages = [message for message in self.talk.messages if message["role"] == "system"]
        self._attached.clear()
