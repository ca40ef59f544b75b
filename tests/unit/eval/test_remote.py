"""Long questions to a server: both forms, busy and broken servers, prompts that are too long, several at a time."""

import json
import random
import threading
import time

import pytest

from indexshare.cli import main
from indexshare.data.long_tasks import Form, long_task
from indexshare.eval import remote
from indexshare.eval.asking import Question
from indexshare.eval.long import Asking, LongReport, evaluate_long
from indexshare.eval.remote import ServerAsker, line_through, pause
from tests.unit.eval.servers import Behaviour, serving

QA, KEY = long_task("qa"), long_task("multi-key")


def ask(url: str, *, form: Form = "base", lengths: tuple[int, ...] = (600,), **settings: int) -> LongReport:
    asker = ServerAsker(url, form=form)
    return evaluate_long(asker, QA, Asking(lengths=lengths, **({"samples": 2} | settings)))


@pytest.mark.parametrize("form", ["base", "chat"])
@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_both_forms_and_every_spelling_of_the_address(form: Form, ending: str) -> None:
    behaviour = Behaviour()
    with serving(behaviour) as url:
        report = ask(url + ending, form=form)
    assert report.scores == ((1.0, 1.0),) and report.program == f"reads at {url}" and report.form == form
    assert all(size is not None and 400 < size <= 600 - QA.room(form) for size in report.tokens[0])
    path, body, headers = behaviour.requests[-1]
    assert path == ("/v1/completions" if form == "base" else "/v1/chat/completions")
    assert body["temperature"] == 0 and body["max_tokens"] == QA.room(form) and "Authorization" not in headers


def test_busy_servers_are_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = list[float]()
    monkeypatch.setattr(time, "sleep", waits.append)
    behaviour = Behaviour(busy=[429, 503, 429])
    with serving(behaviour) as url:
        assert ask(url).scores == ((1.0, 1.0),)
        assert waits == [0.0] * 3
        behaviour.busy += [503] * 100
        with pytest.raises(ValueError, match=r"answered 503 \(try later\), 6 times in a row; try again later or"):
            ask(url)


def test_waits_are_bounded() -> None:
    assert [pause(n, None) for n in (1, 2, 3)] == [1.0, 2.0, 4.0]
    assert pause(30, None) == pause(1, "100000") == pause(1, "inf") == 60.0
    assert pause(2, "Wed, 21 Oct 2026 07:28:00 GMT") == 2.0
    assert pause(1, "-5") == 0.0 and pause(1, "nan") == 1.0


def test_a_length_that_is_too_long_is_refused_and_not_wrong() -> None:
    with serving(Behaviour(context=700)) as url:
        report = ask(url, lengths=(600, 2000))
    assert report.scores == ((1.0, 1.0), ())
    assert report.mean(2000) is None and "maximum context length is 700" in report.refused[2000]
    rows = report.to_dict()["lengths"]
    assert rows[0]["score"] == 1.0 and rows[1]["score"] is None and "700" in rows[1]["refused"]


@pytest.mark.parametrize(
    "said",
    [
        "the request exceeds the available context size. try increasing the context size",
        "The input (9000 tokens) is longer than the model's context length (4096 tokens).",
        "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens",
        "prompt is too long: 210000 tokens > 200000 maximum",
    ],
)
def test_servers_say_it_in_many_ways(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Behaviour, "respond", lambda *arguments: (400, {"error": {"message": said}}))
    with serving(Behaviour()) as url:
        asker = ServerAsker(url, model="reads")
        (found,) = asker.answers([Question(number=0, prompt="a b", max_tokens=2)], 1)
    assert found[1] == remote.Refused(said)


def test_errors_say_what_to_do() -> None:
    behaviour = Behaviour(key="secret")
    with serving(behaviour) as url:
        with pytest.raises(ValueError, match=r"answered 401 \(Incorrect API key provided\); the server wants a key"):
            ServerAsker(url)
        with pytest.raises(ValueError, match=r"refuses the key in that variable \(--api-key-env\)"):
            ServerAsker(url, key="wrong")
        asker = ServerAsker(url, key="secret", model="gpt")
        with pytest.raises(ValueError, match=r"there is no model 'gpt' \(--model-name\): the server has reads, other"):
            asker.counter(QA)
        behaviour.models = ()
        with pytest.raises(ValueError, match=r"lists no model; name the one to ask with --model-name"):
            ServerAsker(url, key="secret")
        behaviour.models = ("gpt",)
        behaviour.raw = b"<html>hello</html>"
        with pytest.raises(ValueError, match=r"a JSON object was expected, not '<html>hello</html>'"):
            asker.counter(QA)
        behaviour.raw = b'{"id": 1}'
        with pytest.raises(ValueError, match="answered without a choice"):
            asker.counter(QA)
    with pytest.raises(
        ValueError, match=r"cannot reach http://127\.0\.0\.1:\d+: connection refused; is the server run"
    ):
        ServerAsker(url)
    for wrong in ("localhost:8000", "ftp://a", "http://", ""):
        with pytest.raises(ValueError, match="expected an address such as http://localhost:8000"):
            ServerAsker(wrong)


def test_a_server_without_counts_takes_a_tokenizer() -> None:
    with serving(Behaviour(usage=False)) as url:
        asker = ServerAsker(url)
        with pytest.raises(
            ValueError, match=r"usage\.prompt_tokens\); name a model with the same tokenizer: --tokenizer"
        ):
            asker.counter(QA)
        words = Asking(lengths=(600,), samples=1, counter=lambda task: lambda text: len(text.split()))
        assert evaluate_long(asker, QA, words).scores == ((1.0,),)


def test_several_questions_at_a_time() -> None:
    """No request is answered before three are there."""
    with serving(Behaviour(hold=threading.Barrier(3))) as url:
        assert ask(url, samples=6, parallel=3).scores == ((1.0,) * 6,)


def test_errors_end_parallel_work() -> None:
    behaviour = Behaviour()
    with serving(behaviour) as url:
        asker = ServerAsker(url)
        behaviour.models = ("other",)
        questions = [Question(number=n, prompt="a b", max_tokens=2) for n in range(9)]
        with pytest.raises(ValueError, match="there is no model 'reads'"):
            list(asker.answers(questions, 4))
    assert len(behaviour.requests) < 9


def test_tokens_are_estimated_on_a_line() -> None:
    count = line_through(KEY, "base", lambda prompt: 20 + len(prompt.split()))
    text = KEY.make(random.Random(7), 900).prompt("base")
    assert abs(count(text) - 20 - len(text.split())) < 0.02 * len(text.split())


def test_the_command_asks_a_server(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "secret")
    with serving(Behaviour(key="secret", context=700)) as url:
        server = ["eval", "--url", f"{url}/v1", "--api-key-env", "SOME_KEY", "--suite", "qa,multi-key"]
        arguments = [*server, "--lengths", "600,2K", "--samples", "2"]
        assert main([*arguments, "--form", "chat", "--parallel", "2", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert main([*server, "--model-name", "other", "--lengths", "100"]) == 2
        assert "a length is 100 tokens; multi-key needs at least" in capsys.readouterr().err
    assert facts["model"] == f"reads at {url}" and facts["qa"]["form"] == "chat"
    assert [row["score"] for row in facts["qa"]["lengths"]] == [1.0, None]
    assert [row["score"] for row in facts["long"]] == [1.0, None]
    assert "multi-key  100% (34% to 100%)" in out.replace("   ", "  ")
    assert "refused" in out and "maximum context length is 700" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "long"], "name a model (a shipped one or a directory), or give the --url of a server"),
        (
            ["--url", "http://localhost:1", "--suite", "needle"],
            "--suite has needle, but a server answers questions alone",
        ),
        (["pico", "--model-name", "a", "--suite", "qa"], "--model-name goes with --url"),
        (["pico", "--api-key-env", "A", "--suite", "qa"], "--api-key-env goes with --url"),
        (["--url", "http://localhost:1", "--api-key-env", "NOT_SET_AT_ALL", "--suite", "qa"], "which is not set"),
        (["pico", "--suite", "qa", "--form", "prose"], "--form is 'prose'; expected base"),
        (["pico", "--suite", "qa", "--form", "chat"], "pico has no chat template"),
        (["pico", "--suite", "qa", "--parallel", "0"], "--parallel is 0; expected at least 1"),
        (["pico", "--suite", "qa", "--answer-tokens", "0"], "--answer-tokens is 0; expected at least 1"),
        (["pico", "--suite", "needle", "--form", "chat"], "--form is read by multi-key"),
        (["pico", "--suite", "needle", "--tokenizer", "nano"], "--tokenizer is read by long questions"),
        (["pico", "pico", "--suite", "qa"], "pico is named twice"),
        (["pico@FFX", "--suite", "qa"], "position 2 of the pattern"),
        (["pico", "nano2", "--suite", "qa"], "did you mean 'nano'"),
    ],
)
def test_refusals(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
