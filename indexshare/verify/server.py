"""Servers that speak OpenAI's completions, asked for the log-probabilities of a prompt of token ids.

Two ways are known: `echo` with `logprobs` (OpenAI's older models, vLLM, SGLang), which is tried first, and vLLM's
`prompt_logprobs`. What a server did to the prompt is checked as far as its answer shows it.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from indexshare.eval.remote import server_words
from indexshare.verify.observation import Observation, check_logprobs

_SECONDS = 600
_Spell = Callable[[int], str]


def ask_server(
    url: str,
    token_ids: Sequence[int],
    *,
    model: str | None = None,
    key: str | None = None,
    precision: str = "bfloat16",
    spell: _Spell | None = None,
) -> Observation:
    """The text under a server.

    Args:
        url: of the server, with or without `/v1`.
        token_ids: the text, sent as ids.
        model: its name there; by default the first that the server lists.
        key: sent as a bearer token.
        precision: type that the server computes in.
        spell: text of one token, to see whether the server read the same ones.

    Raises:
        ValueError: no answer, one without log-probabilities of the prompt, or one about another prompt.
    """
    base = base_address(url)
    name = _first_model(base, key) if model is None else model
    body = {"model": name, "prompt": list(token_ids), "max_tokens": 1, "temperature": 0.0}
    answer = _try(base, body | {"echo": True, "logprobs": 1}, key, "echo", "logprobs")
    values = None if answer is None else _echoed(base, answer, token_ids, spell)
    if values is None:
        answer = _try(base, body | {"prompt_logprobs": 1}, key, "")
        values = None if answer is None else _prompt_logprobs(base, answer, token_ids)
    if values is None:
        raise ValueError(
            f"{base} returned no log-probabilities of the prompt; it must support echo with logprobs, or "
            "prompt_logprobs, in /v1/completions. Without, compare by a file (--logprobs)"
        )
    return Observation(
        program=base, token_ids=tuple(token_ids), logprobs=check_logprobs(values, len(token_ids), base),
        precision=precision,
    )  # fmt: skip


def base_address(url: str) -> str:
    """The server's address without what is added for each request.

    Raises:
        ValueError: not the address of a server.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"--url is {url!r}; expected an address such as http://localhost:8000")
    return url.rstrip("/").removesuffix("/completions").removesuffix("/v1")


def _models(base: str, key: str | None) -> list[str]:
    """Names that the server lists."""
    listed = _ask(f"{base}/v1/models", None, key).get("data")
    entries = listed if isinstance(listed, list) else []
    return [entry["id"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


def _first_model(base: str, key: str | None) -> str:
    names = _models(base, key)
    if not names:
        raise ValueError(f"{base} lists no model; name it with --model-name")
    return names[0]


def _try(base: str, body: dict[str, Any], key: str | None, *words: str) -> dict[str, Any] | None:
    """The answer, or None where the server refuses the request with one of these words: it does not know them."""
    try:
        return _complete(base, body, key)
    except ValueError as error:
        said = str(error)
        if any(f"answered {code}" in said for code in (400, 422)) and any(word in said for word in words):
            return None
        raise


def _complete(base: str, body: dict[str, Any], key: str | None) -> dict[str, Any]:
    """The answer; a refusal says what the server has, where the model's name may be the cause."""
    try:
        return _ask(f"{base}/v1/completions", body, key)
    except ValueError as error:
        names: list[str] = []
        if "answered 404" in str(error):
            try:
                names = _models(base, key)
            except ValueError:
                names = []
        if not names or body["model"] in names:
            raise
        raise ValueError(f"{error}; it has {', '.join(names[:8])}, not {body['model']!r} (--model-name)") from None


def _read(base: str, answer: dict[str, Any], token_ids: Sequence[int]) -> dict[str, Any]:
    """The first choice, once the server says that it has read as many tokens as were sent."""
    choices, usage = answer.get("choices"), answer.get("usage")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError(f"{base} gave no usable answer: no choices in it")
    read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if isinstance(read, int) and read != len(token_ids):
        _complain_of_length(base, read, len(token_ids))
    return choices[0]


def _complain_of_length(base: str, read: int, sent: int) -> None:
    if read < sent:
        cause = "its context is shorter, or it cut the prompt: restart it with a longer context"
    else:
        cause = "it adds tokens of its own, or cuts the prompt into other tokens"
    raise ValueError(f"{base} read {read} tokens of the {sent} that were sent: {cause}")


def _echoed(base: str, answer: dict[str, Any], token_ids: Sequence[int], spell: _Spell | None) -> list[Any] | None:
    """From an answer to `echo`: one value for each token of the prompt, or None if the prompt's are not in it."""
    shown, sent = _read(base, answer, token_ids).get("logprobs"), len(token_ids)
    if not isinstance(shown, dict):
        return None
    values = shown.get("token_logprobs")
    if not isinstance(values, list) or len(values) <= 1:  # none, or that of the token it had to write
        return None
    if not sent <= len(values) <= sent + 1:
        _complain_of_length(base, len(values) - 1 if len(values) > sent else len(values), sent)
    tokens = shown.get("tokens")
    if isinstance(tokens, list) and len(tokens) >= sent:
        _check_tokens(base, tokens[:sent], token_ids, spell)
    return values[:sent]


def _check_tokens(base: str, tokens: Sequence[Any], token_ids: Sequence[int], spell: _Spell | None) -> None:
    """Refuse an answer about other tokens: by id where the server names ids, else where most spell another text."""
    if all(isinstance(token, str) and token.startswith("token_id:") for token in tokens):
        pairs = [(token.removeprefix("token_id:"), str(i)) for token, i in zip(tokens, token_ids, strict=True)]
        most = 0
    elif spell is not None:
        # Servers differ in how they write spaces and parts of characters; letters and digits they write alike.
        pairs = [(_plain(token), _plain(spell(i))) for token, i in zip(tokens, token_ids, strict=True)]
        pairs = [(theirs, ours) for theirs, ours in pairs if ours]
        most = len(pairs) // 2
    else:
        return
    wrong = [(theirs, ours) for theirs, ours in pairs if theirs != ours]
    if len(wrong) > most:
        theirs, ours = wrong[0]
        raise ValueError(
            f"{base} read other tokens than were sent, such as {theirs!r} for {ours!r}: it has another tokenizer, or "
            "takes no token ids"
        )


def _plain(text: Any) -> str:
    return "".join(c for c in text if c.isascii() and c.isalnum()) if isinstance(text, str) else ""


def _prompt_logprobs(base: str, answer: dict[str, Any], token_ids: Sequence[int]) -> list[Any] | None:
    """From an answer to `prompt_logprobs`: objects by token id, the prompt's own token among them."""
    listed = _read(base, answer, token_ids).get("prompt_logprobs")
    if not isinstance(listed, list) or not listed:
        return None
    if len(listed) != len(token_ids):
        _complain_of_length(base, len(listed), len(token_ids))
    values: list[Any] = []
    for number, (shown, token) in enumerate(zip(listed, token_ids, strict=True)):
        if number == 0:
            values.append(None)
            continue
        entry = shown.get(str(token)) if isinstance(shown, dict) else None
        if entry is None:
            raise ValueError(f"{base} read another token than {token} at place {number} of the prompt")
        values.append(entry.get("logprob") if isinstance(entry, dict) else entry)
    return values


def _ask(url: str, body: dict[str, Any] | None, key: str | None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as reply:
            answer = json.loads(reply.read())
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url} answered {error.code}: {server_words(error.read()) or error.reason}") from None
    except urllib.error.URLError as error:
        raise ValueError(f"{url} gave no usable answer: {error.reason}; is a server running there?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{url} gave no usable answer: {error}") from None
    if not isinstance(answer, dict):
        raise ValueError(f"{url} gave no usable answer: a JSON object was expected")
    if "choices" not in answer and answer.get("error"):
        raise ValueError(f"{url} answered with an error: {server_words(json.dumps(answer).encode())}")
    return answer
