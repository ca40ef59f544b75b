"""`/v1/completions` and the small endpoints on a real server, through OpenAI's client and by hand."""

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from indexshare.engine.llm import LLM
from indexshare.engine.params import SamplingParams
from tests.unit.serve.conftest import Running


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def llm(chat_dir: Path) -> LLM:
    return LLM(chat_dir, cache_tokens=4096)


def test_the_same_text_as_the_library(client: openai.OpenAI, llm: LLM) -> None:
    for seed, temperature in ((1, 1.0), (2, 0.0)):
        params = SamplingParams(max_tokens=24, temperature=temperature, seed=seed)
        (expected,) = llm.generate("def f(", params)
        found = client.completions.create(
            model="tiny-chat", prompt="def f(", max_tokens=24, temperature=temperature, seed=seed
        )
        assert found.choices[0].text == expected.text and found.choices[0].finish_reason == expected.finish_reason
        assert found.usage is not None and found.usage.completion_tokens == len(expected.token_ids)


def test_streams_join_to_the_whole(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny-chat", "prompt": "def f(", "max_tokens": 24, "seed": 3, "n": 2}
    whole = client.completions.create(**asked)
    texts, usage = ["", ""], None
    for chunk in client.completions.create(stream=True, stream_options={"include_usage": True}, **asked):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
        usage = chunk.usage or usage
    assert texts == [choice.text for choice in whole.choices] and len(set(texts)) == 2
    assert usage is not None and whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens and usage.prompt_tokens == whole.usage.prompt_tokens


def test_parallel_requests_are_batched_and_change_nothing(server: Running, client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        return (
            client.completions.create(model="tiny-chat", prompt=f"{seed} def", max_tokens=30, seed=seed).choices[0].text
        )

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(8)))
    assert together == [ask(seed) for seed in range(8)]
    assert server.settled("cache_blocks_used", 0) and server.metric("requests_in_flight") == 0


def test_echo_and_log_probabilities(server: Running, llm: LLM) -> None:
    prompt = llm.tokenizer.encode("def f(x):")  # type: ignore[union-attr]
    reply = server.post("/v1/completions", prompt=prompt, max_tokens=2, temperature=0, logprobs=3, echo=True).json()
    (choice,) = reply["choices"]
    logprobs = choice["logprobs"]
    assert choice["text"].startswith("def f(x):") and logprobs["token_logprobs"][0] is None
    score = llm.score(prompt)
    assert logprobs["token_logprobs"][1 : len(prompt)] == pytest.approx([t.logprob for t in score.tokens[1:] if t])
    assert len(logprobs["tokens"]) == len(prompt) + 2 == len(logprobs["text_offset"])
    assert len(choice["prompt_logprobs"]) == len(prompt) and choice["prompt_logprobs"][0] is None
    alone = server.post("/v1/completions", prompt=prompt, max_tokens=0, logprobs=0, echo=True).json()
    assert alone["choices"][0]["logprobs"]["token_logprobs"] == logprobs["token_logprobs"][: len(prompt)]
    assert alone["usage"]["prompt_tokens"] == len(prompt) and alone["usage"]["completion_tokens"] == 0


def test_token_ids_in_and_out(server: Running, llm: LLM) -> None:
    ids = llm.tokenizer.encode("def f(")  # type: ignore[union-attr]
    asked: dict[str, Any] = {"prompt": [ids, ids[:2]], "max_tokens": 5, "temperature": 0, "return_token_ids": True}
    reply = server.post("/v1/completions", **asked).json()
    expected = [out.token_ids for out in llm.generate([ids, ids[:2]], SamplingParams(max_tokens=5, temperature=0))]
    assert [choice["token_ids"] for choice in reply["choices"]] == expected
    assert [choice["prompt_token_ids"] for choice in reply["choices"]] == [ids, ids[:2]]


def test_stop_bias_and_structure(server: Running) -> None:
    asked: dict[str, Any] = {"prompt": "def", "max_tokens": 50, "structured_outputs": {"regex": "abc=[0-9]{4};"}}
    whole = server.post("/v1/completions", **asked).json()["choices"][0]
    assert whole["text"].startswith("abc=") and whole["finish_reason"] == "stop"
    stopped = server.post("/v1/completions", stop=["="], **asked).json()["choices"][0]
    assert stopped["text"] == "abc" and stopped["finish_reason"] == "stop"
    assert server.post("/v1/completions", **asked | {"structured_outputs": {"choice": ["x"]}}).json()["choices"][0][
        "text"
    ] == ("x")
    biased = server.post("/v1/completions", prompt="def", max_tokens=3, logit_bias={"65": 100}, return_token_ids=True)
    assert biased.json()["choices"][0]["token_ids"] == [65] * 3


def test_a_prompt_that_was_read_before_is_in_the_cache(server: Running) -> None:
    prompt = "It is a town, and so on.\n" * 60
    first, second = (server.post("/v1/completions", prompt=prompt, max_tokens=1).json()["usage"] for _ in range(2))
    details = [usage["prompt_tokens_details"]["cached_tokens"] for usage in (first, second)]
    assert details[0] == 0 and details[1] > first["prompt_tokens"] / 2


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "prompt is None; expected a text"),
        ({"prompt": ""}, 400, "prompt is empty"),
        ({"prompt": [1, 9999]}, 400, "token id 9999 is out of range"),
        ({"prompt": "a", "model": "other"}, 404, "the model 'other' is not served here; served are 'tiny-chat'"),
        ({"prompt": "a", "temprature": 1}, 400, "field 'temprature'; did you mean 'temperature'?"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature is -1; expected a number from 0 to 100"),
        ({"prompt": "a", "n": 0}, 400, "n is 0; expected an integer from 1 to 64"),
        ({"prompt": "a", "stop": 3}, 400, "stop is 3; expected a list of strings"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens is 0; expected 1 or more"),
        ({"prompt": "a", "max_tokens": 5000}, 400, "exceed the context of 4096; set max_tokens to at most 4095"),
        ({"prompt": "a", "stream": "yes"}, 400, "stream is 'yes'; expected true or false"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, 400, "expected token ids for keys"),
        ({"prompt": "a", "suffix": "b"}, 400, "does not complete in the middle"),
        ({"prompt": "a", "response_format": {"type": "xml"}}, 400, "expected text, json_object or json_schema"),
        ({"prompt": "a", "structured_outputs": {"regex": "("}}, 400, "structure asked for is not valid"),
    ],
)
def test_what_is_refused(server: Running, body: dict[str, Any], status: int, words: str) -> None:
    reply = server.post("/v1/completions", **body)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert words in error["message"] and set(error) == {"message", "type", "param", "code"}


def test_bodies_that_are_none(server: Running) -> None:
    for data in (b"{", b"[1]", b"\xff", b""):
        reply = server.http.post("/v1/completions", content=data)
        assert reply.status_code == 400 and "body is" in reply.json()["error"]["message"]
    deep = server.http.post("/v1/completions", content=b"[" * 100_000)
    assert deep.status_code == 400
    assert server.http.get("/v1/completions").status_code == 405 and server.http.get("/v2").status_code == 404
    assert "is not served here" in server.http.get("/v2").json()["error"]["message"]


def test_models_and_tokens(server: Running, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny-chat"]
    assert client.models.retrieve("tiny-chat").id == "tiny-chat"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert server.http.get("/health").json()["status"] == "ok" and "version" in server.http.get("/version").json()
    found = server.post("/tokenize", prompt="def f(x):", return_token_strs=True).json()
    assert "".join(found["token_strs"]) == "def f(x):" and found["count"] == len(found["tokens"])
    assert server.post("/detokenize", tokens=found["tokens"]).json() == {"prompt": "def f(x):"}
    chat = server.post("/tokenize", messages=[{"role": "user", "content": "Hi"}], reasoning_effort="none").json()
    text = server.post("/detokenize", tokens=chat["tokens"]).json()["prompt"]
    assert text == "[gMASK]<sop><|user|>Hi<|assistant|><think></think>"
    assert server.post("/detokenize", tokens=["a"]).status_code == 400


def test_the_page_needs_nothing_else(server: Running) -> None:
    reply = server.http.get("/")
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/html")
    assert "://" not in reply.text, "no address of another server"
    assert not re.findall(r"innerHTML|<link|src=", reply.text), "text of models is text, and nothing is loaded"


def test_metrics_count(server: Running) -> None:
    before = server.metric("generated_tokens_total")
    server.post("/v1/completions", prompt="a", max_tokens=7, ignore_eos=True)
    assert server.metric("generated_tokens_total") == before + 7
    assert math.isfinite(server.metric("time_to_first_token_seconds_sum"))
    assert 'path="/v1/completions",status="200"' in server.http.get("/metrics").text


def test_events_are_as_they_should_be(server: Running) -> None:
    with server.http.stream("POST", "/v1/completions", json={"prompt": "a", "max_tokens": 3, "stream": True}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and all(json.loads(line[6:])["object"] for line in lines[:-1])
