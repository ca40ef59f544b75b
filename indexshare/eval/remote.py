"""A server that speaks OpenAI's API, asked long questions; with the standard library alone.

Base form is `/v1/completions`, chat form `/v1/chat/completions`. A busy server (429, 503) is asked again after a while,
a bounded number of times; a prompt that is too long for it is a refusal, not a wrong answer; anything else that goes
wrong ends the work with a line that says what to do.
"""

from __future__ import annotations

import http.client
import json
import queue
import random
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from indexshare.data.long_tasks import Form, LongTask
from indexshare.eval.asking import Answer, Counter, Question, Refused

_SECONDS = 3600.0  # for one answer: long prompts on slow machines
_TRIES, _PAUSE_S, _LONGEST_PAUSE_S = 6, 1.0, 60.0  # for a server that is busy; the pause doubles
_BUSY = (429, 503)
_TOO_LONG = re.compile(
    r"context[ _-]?(?:length|size|window)|maximum (?:context|model|input) len|max_model_len|"
    r"(?:prompt|input|request)s?\b.{0,60}\b(?:is|are) (?:too long|longer than)|too many (?:input )?tokens|"
    r"inputs?` tokens|exceeds? the (?:available )?context",
    re.IGNORECASE,
)
_SHOWN = 300  # characters of what a server says
T = TypeVar("T")
R = TypeVar("R")


class ServerAsker:
    """A model on a server.

    Args:
        url: of the server, with or without `/v1`.
        model: its name there; by default the first that the server lists.
        key: sent as a bearer token.
        form: completions (`base`) or chat completions (`chat`).

    Raises:
        ValueError: not an address, no answer from it, or no model.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        key: str | None = None,
        form: Form = "base",
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"--url is {url!r}; expected an address such as http://localhost:8000")
        self.base, self._key = url.rstrip("/").removesuffix("/v1"), key
        self.form = form
        self.model = self._first_model() if model is None else model
        self.name = f"{self.model} at {self.base}"
        self.identity = self.name
        self._counters: dict[str, Counter] = {}

    def _first_model(self) -> str:
        names = self._models()
        if not names:
            raise ValueError(f"{self.base} lists no model; name the one to ask with --model-name")
        return names[0]

    def _models(self) -> list[str]:
        listed = self._send("/v1/models", None).get("data")
        entries = listed if isinstance(listed, list) else []
        return [e["id"] for e in entries if isinstance(e, dict) and isinstance(e.get("id"), str)]

    def counter(self, task: LongTask) -> Counter:
        """From the bytes of a prompt, on the line through the server's own counts of two short prompts of the task.

        Raises:
            ValueError: the server does not say how many tokens a prompt had.
        """
        if task.name not in self._counters:
            self._counters[task.name] = line_through(task, self.form, self._measured)
        return self._counters[task.name]

    def _measured(self, prompt: str) -> int:
        answer = self._one(Question(number=0, prompt=prompt, max_tokens=1))
        if isinstance(answer, Refused):
            raise ValueError(f"{self.base} does not even read {len(prompt):,} characters: {answer.reason}")
        if answer.prompt_tokens is None:
            raise ValueError(
                f"{self.base} does not say how many tokens a prompt has (usage.prompt_tokens); "
                "name a model with the same tokenizer: --tokenizer DIRECTORY"
            )
        return answer.prompt_tokens

    def answers(self, questions: Iterable[Question], parallel: int) -> Iterator[tuple[Question, Answer | Refused]]:
        """Greedy answers, `parallel` requests at a time, in the order in which they come.

        Raises:
            ValueError: no usable answer; the server's own words are given.
        """
        if parallel == 1:
            return ((question, self._one(question)) for question in questions)
        return side_by_side(self._one, questions, parallel)

    def _one(self, question: Question) -> Answer | Refused:
        body: dict[str, Any] = {"model": self.model, "max_tokens": question.max_tokens, "temperature": 0.0}
        try:
            if self.form == "base":
                return _read(self._send("/v1/completions", body | {"prompt": question.prompt}), self.base)
            messages = [{"role": "user", "content": question.prompt}]
            return _read(self._send("/v1/chat/completions", body | {"messages": messages}), self.base)
        except PromptTooLong as error:
            return Refused(str(error))

    def _send(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        """The server's JSON object; busy servers are asked again."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data=data, headers=headers)
        for attempt in range(1, _TRIES + 1):
            try:
                with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
                    return _object(reply.read(), self.base + path)
            except urllib.error.HTTPError as error:
                if error.code not in _BUSY or attempt == _TRIES:
                    raise self._complaint(path, error, attempt) from None
                time.sleep(pause(attempt, error.headers.get("Retry-After")))
            except (OSError, http.client.HTTPException) as error:
                raise ValueError(
                    f"cannot reach {self.base}: {_reason(error)}; is the server running, and is --url its address?"
                ) from None
        raise AssertionError("the last try answers or raises")

    def _complaint(self, path: str, error: urllib.error.HTTPError, attempt: int) -> Exception:
        """The exception for an answer that is none."""
        said = server_words(error.read()) or str(error.reason)
        if error.code in (400, 413, 422, 500) and _TOO_LONG.search(said):
            return PromptTooLong(said)
        hint = ""
        if error.code in (401, 403):
            wanted = "refuses the key in that variable" if self._key else "wants a key: name the variable that holds it"
            hint = f"; the server {wanted} (--api-key-env)"
        elif error.code == 404:
            hint = self._not_found(path)
        elif error.code in _BUSY:
            hint = f", {attempt} times in a row; try again later or with a smaller --parallel (--answers keeps answers)"
        return ValueError(f"{self.base}{path} answered {error.code} ({said}){hint}")

    def _not_found(self, path: str) -> str:
        """What is there in place of a model or an address that is not."""
        if path == "/v1/models":
            return "; is --url the address of an OpenAI-compatible server? Otherwise name its model with --model-name"
        try:
            names = self._models()
        except ValueError:
            names = []
        if names and self.model not in names:
            return f"; there is no model {self.model!r} (--model-name): the server has {', '.join(names[:5])}"
        other = "--form chat" if self.form == "base" else "--form base"
        return f"; the server may not have this way of asking: try {other}"


class PromptTooLong(Exception):
    """A server reads no prompts of this length; the message is the server's."""


def pause(attempt: int, asked: str | None) -> float:
    """Seconds to wait after so many refused tries: what the server asks for, doubling otherwise, a minute at most."""
    try:
        seconds = float(asked) if asked is not None else _PAUSE_S * 2 ** (attempt - 1)
    except ValueError:  # a date
        seconds = _PAUSE_S * 2 ** (attempt - 1)
    return min(max(seconds, 0.0), _LONGEST_PAUSE_S) if seconds == seconds else _PAUSE_S


def line_through(task: LongTask, form: Form, measure: Callable[[str], int]) -> Counter:
    """Tokens of a prompt from its bytes: the line through two prompts of the task that are measured."""
    short, long = (task.make(random.Random(f"{task.name}/size"), n * task.least).prompt(form) for n in (1, 4))
    sizes, tokens = (len(short.encode()), len(long.encode())), (measure(short), measure(long))
    slope = (tokens[1] - tokens[0]) / (sizes[1] - sizes[0])
    return lambda prompt: round(tokens[0] + slope * (len(prompt.encode()) - sizes[0]))


def side_by_side(work: Callable[[T], R], items: Iterable[T], most: int) -> Iterator[tuple[T, R]]:
    """`work` on items in at most `most` threads, results as they come; the first error ends it.

    The threads end with the process: Ctrl+C does not wait for a server.
    """
    waiting: Iterator[T] = iter(items)
    results: queue.SimpleQueue[tuple[T, R | None, Exception | None]] = queue.SimpleQueue()

    def run(item: T) -> None:
        try:
            results.put((item, work(item), None))
        except Exception as error:
            results.put((item, None, error))

    def start() -> int:
        for item in waiting:
            threading.Thread(target=run, args=(item,), daemon=True).start()
            return 1
        return 0

    running = sum(start() for _ in range(most))
    while running:
        item, result, error = results.get()
        if error is not None:
            raise error
        running += start() - 1
        yield item, result  # type: ignore[misc]  # there is one where there is no error


def _read(answer: dict[str, Any], where: str) -> Answer:
    """Text and size out of a completion of either form."""
    try:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (KeyError, IndexError, TypeError):
        raise ValueError(f"{where} answered without a choice: {str(answer)[:_SHOWN]}") from None
    usage = answer.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return Answer(text if isinstance(text, str) else "", tokens if isinstance(tokens, int) else None)


def _object(data: bytes, where: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{where} gave no usable answer: a JSON object was expected, not {server_words(data)!r}")
    return found


def server_words(data: bytes) -> str:
    """What an answer says for people: the message of an error object, or the beginning of the text."""
    text = data.decode(errors="replace")
    try:
        found = json.loads(text)
        while isinstance(found, dict):
            found = next((found[key] for key in ("error", "message", "detail") if found.get(key)), text)
        text = found if isinstance(found, str) else text
    except ValueError:
        pass
    return " ".join(text.split())[:_SHOWN]


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror.lower()
    return str(inner) or type(inner).__name__
