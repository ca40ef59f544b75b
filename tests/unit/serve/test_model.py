"""What the server knows of its model, and bodies and structures as they are read: no process, no port."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from indexshare.serve.answer import Blocks, Made
from indexshare.serve.body import HARMLESS, Body, parse_object
from indexshare.serve.engine import EngineClient
from indexshare.serve.errors import ApiError
from indexshare.serve.model import ServedModel
from indexshare.serve.stream import merged
from indexshare.serve.wire import EngineSettings
from indexshare.text.answer_parser import Call, Reasoning, Text
from indexshare.text.chat_template import ChatTemplate

USER = [{"role": "user", "content": "Hi"}]
TOOLS = [{"function": {"name": "f"}}]


@pytest.fixture
def model(chat_dir: Path) -> ServedModel:
    return ServedModel.load(str(chat_dir))


def refused(call: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        call()
    return caught.value


def test_templates_that_lack_something(model: ServedModel) -> None:
    assert model.chat_prompt(USER, tools=TOOLS).tools == [{"type": "function", "function": {"name": "f"}}]
    model.template = ChatTemplate("{{ messages[0].content }}")
    assert model.chat_prompt(USER, effort="none").text == "Hi" and not model.chat_prompt(USER).reasoning
    assert "has no tools; leave them out" in refused(lambda: model.chat_prompt(USER, tools=TOOLS)).message
    assert "has no reasoning; leave it out" in refused(lambda: model.chat_prompt(USER, effort="high")).message
    model.template = ChatTemplate("{{ messages[0].content }}{{ tools }}")
    assert "in a form that is not read here" in refused(lambda: model.chat_prompt(USER, tools=TOOLS)).message
    model.template = None
    assert "use /v1/completions" in refused(lambda: model.chat_prompt(USER)).message


def test_names(model: ServedModel, chat_dir: Path) -> None:
    assert model.name == "tiny-chat" and ServedModel.load(str(chat_dir), ("a", "b")).names == ("a", "b")
    assert refused(lambda: model.check_name("b")).status == 404


def test_reading_bodies() -> None:
    body = Body({"n": None, "user": "me", "stream": True, "stop": ["a"]}, ("n", "stream", "stop"))
    assert "n" not in body and body.boolean("stream") and body.list("stop") == ["a"] and "user" in HARMLESS
    assert "stop is ['a']; expected a text" in refused(lambda: body.text("stop")).message
    assert refused(lambda: Body({"strem": True}, ("stream",))).code == "unknown_field"
    assert refused(lambda: parse_object(b"NaN,")).code == "invalid_json"


def kinds(*pieces: Any) -> list[tuple[str, Any]]:
    blocks = Blocks()
    return [*blocks.push(pieces), *blocks.finish()]


def test_blocks() -> None:
    made = Made(Call("f", "{}", True, ""))
    found = kinds(Reasoning("a"), Reasoning("b"), Text("\n"), made, Text(" "), Text("c "), Text("d"), Text(""))
    assert found == [
        ("start", "reasoning"), ("reasoning", "a"), ("reasoning", "b"), ("stop", "reasoning"), ("start", made),
        ("stop", "call"), ("start", "text"), ("text", " c "), ("text", "d"), ("stop", "text"),
    ]  # fmt: skip
    assert kinds(Text(" \n")) == []


def test_streams_that_are_merged() -> None:
    async def stream(count: int, wrong: bool = False) -> Any:
        for number in range(count):
            await asyncio.sleep(0)
            yield number
        if wrong:
            raise ApiError(500, "no")

    async def run(*streams: Any) -> list[Any]:
        return [item async for item in merged(list(streams))]

    assert sorted(asyncio.run(run(stream(2), stream(3)))) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    with pytest.raises(ApiError, match="no"):
        asyncio.run(run(stream(2), stream(1, wrong=True)))


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    async def run() -> None:
        engine = EngineClient(EngineSettings(model=str(tmp_path)))
        with pytest.raises(ValueError, match=r"has no config\.json"):
            await engine.start()
        with pytest.raises(ApiError, match="being started"):
            engine.submit([1], None)  # type: ignore[arg-type]
        await engine.stop()

    asyncio.run(run())
