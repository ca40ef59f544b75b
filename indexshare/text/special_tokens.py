"""What the files beside a `tokenizer.json` say of single tokens: which one ends a text, and which are special.

Read as transformers reads them: `added_tokens_decoder` of `tokenizer_config.json`, and only where that is missing the
older `special_tokens_map.json` and `added_tokens.json`. A token that `tokenizer.json` does not have would get the next
free id there; here it is refused when the tokenizer is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexshare.text.tokenizer_file import FLAGS, json_object, shown

CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class NamedTokens:
    """`eos` ends a text, if any does; `tokens` is what the files say of each token.

    That is its `id`, its flags, the `source` that says so, and whether it is `used`, as the token that ends a text is.
    """

    eos: str | None
    tokens: dict[str, dict[str, Any]]


def read_named_tokens(directory: Path) -> NamedTokens:
    """Everything that the files of a directory say of single tokens.

    Raises:
        ValueError: a file is damaged, or a value is of the wrong type.
        OSError: a file cannot be read.
    """
    config = _read(directory / CONFIG_FILE)
    tokens: dict[str, dict[str, Any]] = {}
    if config.get("added_tokens_decoder") is not None:
        for name, said in _decoder(config["added_tokens_decoder"]):
            tokens[name] = said | {"source": CONFIG_FILE}
    else:
        for name, i in _read(directory / ADDED_FILE).items():
            tokens[name] = {"id": _number(i, f"the id of {shown(name)} in {ADDED_FILE}"), "source": ADDED_FILE}
        config = config | _read(directory / MAP_FILE)
    for name, said in _special(config):
        tokens[name] = {"source": CONFIG_FILE} | said | tokens.get(name, {}) | {"used": True}
    eos = config.get("eos_token")
    return NamedTokens(_content(eos, "eos_token") if eos else None, tokens)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return json_object(file.read_text(encoding="utf-8"), file.name)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file.name} is not UTF-8 text: {error}") from None


def _decoder(listed: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and what is said of them in `added_tokens_decoder`, which lists tokens by id."""
    if not isinstance(listed, dict):
        raise ValueError(f"added_tokens_decoder in {CONFIG_FILE} is a {type(listed).__name__}; expected an object")
    for key, said in listed.items():
        if not isinstance(said, dict):
            raise ValueError(f"the token {shown(key)} in added_tokens_decoder is {shown(said)}; expected an object")
        number = int(key) if key.isascii() and key.isdecimal() and len(key) < 11 else None
        name = _content(said, f"the token {shown(key)} in added_tokens_decoder")
        yield name, _flags(said) | {"id": _number(number, shown(key))}


def _special(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """All tokens that the configuration gives a use: their names, and their flags where it has any."""
    for key, value in config.items():
        listed: Any = ()
        if key in _NAMED or (key.endswith("_token") and isinstance(value, str)):
            listed = [value] if value else ()
        elif key in _LISTS and value:
            if not isinstance(value, list | dict):
                raise ValueError(f"{key} in {CONFIG_FILE} is {shown(value)}; expected a list of tokens")
            listed = value.values() if isinstance(value, dict) else value
        for token in listed:
            yield _content(token, key), _flags(token) if isinstance(token, dict) else {}


def _flags(token: Mapping[str, Any]) -> dict[str, Any]:
    return {flag: token[flag] for flag in FLAGS if flag in token}


def _content(token: Any, what: str) -> str:
    """A token's text, given as it is or in an object with its flags."""
    name = token.get("content") if isinstance(token, dict) else token
    if not isinstance(name, str) or not name:
        raise ValueError(f"{what} in {CONFIG_FILE} is {shown(token)}; expected a text, or an object with its content")
    return name


def _number(value: Any, what: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{what} is {shown(value)}; expected a token's id")
    return value
