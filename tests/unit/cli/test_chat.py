"""`indexshare chat`: conversations line by line, its commands and tools, and what it says no to."""

import builtins
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from indexshare.cli.chat import HELP, Session
from indexshare.cli.chat_tools import TOOLS, run_tool
from indexshare.cli.conversation import Conversation
from indexshare.config.presets import preset
from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from indexshare.text.answer_parser import Call, Reasoning, Text
from indexshare.text.chat_template import glm_template
from indexshare.text.tokenizer import Tokenizer, train_bpe
from tests.unit.cli.conftest import Result
from tests.unit.engine.fake_model import ScriptModel

CALL = "<tool_call>calculator<arg_key>expression</arg_key><arg_value>6 * 7</arg_value></tool_call>"
NAMES = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<think>", "</think>", "<tool_call>", "</tool_call>"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["def f(x):\n    return x\n"], 300, NAMES)


class Scripted:
    """An `LLM` that says its lines one after the other, whatever it is asked."""

    def __init__(self, tokenizer: Tokenizer, lines: list[str]) -> None:
        self.tokenizer, self.lines, self.asked = tokenizer, lines, list[str]()
        self._settings: dict[str, Any] = {"cache_tokens": 4096, "max_context": 4096}
        self._config = preset("tiny").replace(
            vocab_size=320, eos_token_id=tokenizer.eos_ids, max_position_embeddings=4096
        )
        self.max_context = 4096
        self.cache = LLM(ScriptModel(self._config, [0]), tokenizer=tokenizer, **self._settings).cache  # type: ignore[arg-type]

    def stream(self, ids: list[int], params: SamplingParams, **_: Any) -> Iterator[Any]:
        self.asked.append(self.tokenizer.decode(ids))
        script = ScriptModel(self._config, self.tokenizer.encode(self.lines.pop(0)), len(ids))
        return LLM(script, tokenizer=self.tokenizer, **self._settings).stream(ids, params)  # type: ignore[arg-type]


Say = Callable[..., tuple[str, Conversation]]


@pytest.fixture
def say(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a session over lines of input, answered with lines of a script; gives what was printed."""

    def run(given: list[Any], answers: list[str], **settings: Any) -> tuple[str, Conversation]:
        left = list(given)

        def read(prompt: str = "") -> str:
            if not left:
                raise EOFError
            line = left.pop(0)
            if isinstance(line, BaseException):
                raise line
            return str(line)

        monkeypatch.setattr(builtins, "input", read)
        talk = Conversation(
            Scripted(tokenizer, answers), glm_template(), SamplingParams(max_tokens=500, temperature=0), **settings
        )  # type: ignore[arg-type]
        Session(talk).run()
        captured = capsys.readouterr()
        return captured.out + captured.err, talk

    return run


def test_answers_and_history(say: Say) -> None:
    printed, talk = say(["Hi", "And\\", "you?"], ["hm</think>Hello", "well</think>Fine"])
    assert printed == "Hello\nFine\n", "without a terminal there are answers alone"
    assert [message["content"] for message in talk.messages] == ["Hi", "Hello", "And\nyou?", "Fine"]
    assert talk.messages[1]["reasoning_content"] == "hm"
    assert talk.llm.asked[1].endswith("<|assistant|><think></think>Hello<|user|>And\nyou?<|assistant|><think>")  # type: ignore[attr-defined]


def test_tools_are_run(say: Say) -> None:
    printed, talk = say(["/tools", "6 * 7?"], ["hm" + CALL, "</think>42"])
    assert "tools: calculator, clock, search_files" in printed and printed.count("42\n") == 2
    assert [message["role"] for message in talk.messages] == ["user", "assistant", "tool", "assistant"]
    assert "<tool_response>42</tool_response>" in talk.llm.asked[1] and "<think>hm</think>" in talk.llm.asked[1]  # type: ignore[attr-defined]


def test_commands(say: Say, tmp_path: Path) -> None:
    note, saved = tmp_path / "note.txt", tmp_path / "talk.json"
    note.write_text("The town is Ahrum.")
    given = ["/stats", "/think none", f"/read {note}", "Where?", f"/save {saved}", "/clear", f"/load {saved}", "/stats"]
    printed, talk = say([*given, "/help", "/think", "/nothing", "/read", "/think huge", "/quit", "never"], ["Ahrum."])
    assert "nothing was answered yet" in printed and HELP in printed and "2 messages in" in printed
    assert "error: there is no command /nothing" in printed and "error: /read needs the name of a file" in printed
    assert "expected one of none, minimal" in printed and "tokens of prompt" in printed
    assert f"<|user|># file: {note}\nThe town is Ahrum.\nWhere?" in talk.llm.asked[0]  # type: ignore[attr-defined]
    assert talk.llm.asked[0].endswith("<think></think>")  # type: ignore[attr-defined]
    assert len(json.loads(saved.read_text())["messages"]) == 2 == len(talk.messages)
    saved.write_text("{}")
    assert "holds no conversation" in say([f"/load {saved}"], [])[0]


def test_ctrl_c_stops_the_answer_alone(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Conversation.answer

    def cut(self: Conversation, *given: Any) -> Iterator[Any]:
        for number, piece in enumerate(whole(self, *given)):
            if number == 3:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(Conversation, "answer", cut)
    printed, talk = say(["Hi", KeyboardInterrupt(), "/think none"], ["</think>Hello you there"])
    assert "(stopped)" in printed and "ends)" in printed and "thinking: none" in printed
    assert talk.messages[1]["role"] == "assistant" and talk.messages[1]["content"]


def test_a_conversation_that_is_too_long(say: Say) -> None:
    printed, talk = say(["a b " * 4000, "Hi"], ["", "</think>Hello"])
    assert "error: prompt has" in printed and [message["content"] for message in talk.messages] == ["Hi", "Hello"]


def test_pieces_on_a_terminal(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, str | None]] = []
    monkeypatch.setattr("indexshare.cli.chat.write", lambda text, style=None: shown.append((text, style)))
    plain = Session.__init__

    def on_terminal(self: Session, talk: Conversation) -> None:
        plain(self, talk)
        self._terminal = True

    monkeypatch.setattr(Session, "__init__", on_terminal)
    pieces = [Reasoning("hm"), Text("Hello"), Call("clock", "{}", False, "")]
    monkeypatch.setattr(Conversation, "answer", lambda self, _: self.messages.append({"role": "assistant"}) or pieces)
    printed, _ = say(["Hi"], [])
    assert shown == [("hm", "dim"), ("\n", None), ("Hello", None), ("\n", None)] and "clock {} (cut off)" in printed


def test_the_command(
    run: Callable[..., Result], model_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = run("chat", model_dir)
    assert result.code == 2 and "has no chat template, so it knows no conversations" in result.err
    for file in model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    monkeypatch.setattr("sys.stdin", io.StringIO("def\n"))
    result = run("chat", tmp_path, "--max-tokens", "5", "--system", "x")
    assert result.code == 0 and result.out and "error" not in result.err
    result = run("chat", tmp_path, "--tools")
    assert result.code == 2 and "has no tools" in result.err
    result = run("chat", tmp_path, "--think", "high")
    assert result.code == 2 and "has no reasoning; leave it out" in result.err


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("calculator", '{"expression": "2 ** 10 - 7 // 2 * -1"}', "1027"),
        ("calculator", '{"expression": "9 ** 9 ** 9"}', "Error: the result would be too long"),
        ("calculator", '{"expression": "__import__(1)"}', "Error: expected numbers and"),
        ("calculator", '{"expression": "1 / 0"}', "Error: division by zero"),
        ("calculator", "{}", "Error: calculate() missing"),
        ("clock", "{}", "20"),
        ("search_files", '{"text": "town"}', "a/b.txt:2: the town"),
        ("search_files", '{"text": "nowhere"}', "nothing found"),
        ("search_files", '{"text": "x", "folder": ".."}', "Error: .. lies outside the current folder"),
        ("rm", "{}", "Error: there is no tool 'rm'"),
    ],
)
def test_tools(name: str, arguments: str, result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("one\n  the town\n")
    (tmp_path / "a" / "c.bin").write_bytes(b"\0town")
    monkeypatch.chdir(tmp_path)
    assert run_tool(name, arguments).startswith(result)
    assert name == "rm" or name in [tool["function"]["name"] for tool in TOOLS]
