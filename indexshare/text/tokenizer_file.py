"""What a `tokenizer.json` holds, looked at before it is believed.

The file is the whole state of somebody else's `tokenizers` object. Some of it belongs to a use and not to the
vocabulary (truncation, padding, dropout) and is left out, as transformers does when it encodes. Ids are those of the
file: the library numbers added tokens anew when it loads them, which is undone here. Kinds of tokenizer whose text
cannot be given back byte by byte are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

SUPPORTED = "supported are byte-level BPE (GLM, DeepSeek, GPT-2) and BPE with byte fallback (Llama)"
SPACE = "\u2581"  # stands for a space in vocabularies with byte fallback
_MAX_ID = 2**31 - 1
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")
_TO_SPACE = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}


@dataclass(frozen=True, kw_only=True)
class TokenizerFile:
    """A checked `tokenizer.json`.

    Attributes:
        rust: the library's object, without truncation, padding and dropout.
        ids: id of every entry by its name, added tokens included; ids may have holes.
        added: names of added tokens by id; `special`: the ids of those that are special.
        renumbered: id in the file by the library's own, where the two differ.
        before, after: ids that the post-processor puts around a text.
        byte_fallback: whether entries are text with byte tokens (`<0x0A>`), not stand-ins for bytes.
        stripped: spaces that decoding takes from the beginning of a text.
    """

    rust: RustTokenizer
    ids: dict[str, int]
    added: dict[int, str]
    special: frozenset[int]
    renumbered: dict[int, int] = field(default_factory=dict)
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    byte_fallback: bool = False
    stripped: int = 0


def byte_of_character() -> dict[str, int]:
    """The printable stand-ins that byte-level BPE vocabularies use for the 256 bytes (the GPT-2 table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = sorted({*range(256)} - {*plain})
    return {chr(b): b for b in plain} | {chr(256 + shift): byte for shift, byte in enumerate(others)}


def read_tokenizer(text: str, tokens: Mapping[str, Mapping[str, Any]] | None = None) -> TokenizerFile:
    """A `tokenizer.json` from its text.

    Args:
        text: the file.
        tokens: tokens that other files of the directory name, with what they say of them: an `id`, flags. They become
            added tokens, special ones if they are `used`, or change those, as transformers lets them.

    Raises:
        ValueError: damaged, of a kind that is not supported, or in contradiction to itself or to `tokens`.
    """
    data = json_object(text, "tokenizer.json")
    model = _object(data, "model")
    byte_fallback, stripped = _kind(data, model)
    vocab, entries = _vocab(model), _added(data)
    changed = _apply(tokens or {}, entries, vocab)
    data["added_tokens"] = list(entries.values())
    ids = _all_ids(vocab, entries)
    _check_characters(vocab, entries, byte_fallback)
    before, after = _around(data.get("post_processor"), frozenset(ids.values()))
    if any(i >= len(vocab) for i in vocab.values()):  # the library takes the number of entries for the next free id
        model["vocab"] = {name: i for i, name in enumerate(sorted(vocab, key=vocab.__getitem__))}
        changed = True
    rust = _load(_without_state(data) if _has_state(data) or changed else text)
    numbers = rust.get_vocab(with_added_tokens=True)
    if numbers.keys() != ids.keys():
        lost = min(numbers.keys() ^ ids.keys())
        raise ValueError(f"the entry {shown(lost)} is not read as it is written; the file is damaged")
    return TokenizerFile(
        rust=rust,
        ids=ids,
        added={entry["id"]: name for name, entry in entries.items()},
        special=frozenset(entry["id"] for entry in entries.values() if entry.get("special")),
        renumbered={numbers[name]: i for name, i in ids.items() if numbers[name] != i},
        before=before,
        after=after,
        byte_fallback=byte_fallback,
        stripped=stripped,
    )


def json_object(text: str, what: str) -> dict[str, Any]:
    """A JSON object; ValueError when the text is anything else, however deeply nested or long its numbers are."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{what} holds a {type(data).__name__}; expected a JSON object")
    return data


def _object(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {shown(value)}; expected an object")
    return value


def shown(value: Any) -> str:
    """A value as errors show it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _kind(data: dict[str, Any], model: dict[str, Any]) -> tuple[bool, int]:
    """Whether the vocabulary has byte fallback, and how many leading spaces its decoder strips."""
    kind = model.get("type", "BPE" if "merges" in model else None)  # old files leave the type out
    if kind != "BPE":
        raise ValueError(f"a tokenizer of type {shown(kind)} is not supported; {SUPPORTED}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(f"{key} is {shown(model[key])}, which is not supported; {SUPPORTED}")
    steps = _steps(data.get("decoder"))
    names = [step.get("type") for step in steps]
    if names == ["ByteLevel"]:
        return False, 0
    if model.get("byte_fallback") is True and steps[:1] == [_TO_SPACE] and names[1:2] == ["ByteFallback"]:
        if names[2:] in ([], ["Fuse"]):
            return True, 0
        strip = steps[-1]
        if names[2:] == ["Fuse", "Strip"] and (strip.get("content"), strip.get("stop")) == (" ", 0):
            return True, _id(strip.get("start"), "start of the decoder's Strip")
    listed = " + ".join(map(str, names)) or "missing"
    raise ValueError(f"the decoder is {shown(listed)}, which is not supported; {SUPPORTED}")


def _steps(decoder: Any) -> list[dict[str, Any]]:
    """A decoder as the list of what it does."""
    if decoder is None:
        return []
    if not isinstance(decoder, dict):
        raise ValueError(f"decoder is {shown(decoder)}; expected an object")
    steps = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError(f"decoders is {shown(steps)}; expected a list of objects")
    return steps


def _vocab(model: dict[str, Any]) -> dict[str, int]:
    vocab = _object(model, "vocab")
    for name, i in vocab.items():
        if not _is_id(i):
            _id(i, f"the id of {shown(name)}")
    if len(set(vocab.values())) != len(vocab):
        by_id: dict[int, str] = {}
        one, other, i = next((by_id[i], n, i) for n, i in vocab.items() if by_id.setdefault(i, n) != n)
        raise ValueError(f"{shown(one)} and {shown(other)} have the same id {i}; the file is damaged")
    return vocab


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _MAX_ID


def _id(value: Any, what: str) -> int:
    if not _is_id(value):
        raise ValueError(f"{what} is {shown(value)}; expected a whole number from 0 to {_MAX_ID}")
    return value


def _added(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The entries of `added_tokens` by name."""
    listed = data.setdefault("added_tokens", [])
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ValueError(f"added_tokens is {shown(listed)}; expected a list of objects")
    found: dict[str, dict[str, Any]] = {}
    for entry in listed:
        name = entry.get("content")
        if not isinstance(name, str) or not name:
            raise ValueError(f"the content of an added token is {shown(name)}; expected a text that is not empty")
        _id(entry.get("id"), f"the id of the added token {shown(name)}")
        _check_flags(entry, name)
        if name in found:
            raise ValueError(f"the added token {shown(name)} is listed twice; remove one")
        found[name] = entry
    return found


def _check_flags(entry: Mapping[str, Any], name: str) -> None:
    for flag in FLAGS:
        if not isinstance(entry.get(flag, False), bool):
            raise ValueError(f"{flag} of the token {shown(name)} is {shown(entry[flag])}; expected true or false")


def _apply(tokens: Mapping[str, Mapping[str, Any]], entries: dict[str, dict[str, Any]], vocab: dict[str, int]) -> bool:
    """Let what other files say of tokens change the entries; whether that changed anything."""
    changed = False
    for name, said in tokens.items():
        _check_flags(said, name)
        known = entries[name]["id"] if name in entries else vocab.get(name)
        if known is None or said.get("id", known) != known:
            there = "is not in the vocabulary of tokenizer.json" if known is None else f"tokenizer.json gives {known}"
            place = f" with the id {said['id']}" if "id" in said else ""
            raise ValueError(
                f"{said['source']} names the token {shown(name)}{place}, which {there}; make the two files agree"
            )
        plain = dict.fromkeys(FLAGS, False) | {"id": known, "content": name, "special": said.get("used", False)}
        entry = entries.get(name, plain) | {flag: said[flag] for flag in FLAGS if flag in said}
        changed |= entry != entries.get(name)
        entries[name] = entry
    return changed


def _all_ids(vocab: dict[str, int], entries: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Ids by name; a name with two ids or an id with two names is refused."""
    ids, names = dict(vocab), {i: name for name, i in vocab.items()}
    for name, entry in entries.items():
        i = entry["id"]
        if ids.setdefault(name, i) != i:
            raise ValueError(
                f"the added token {shown(name)} has the id {i}, but {ids[name]} in the vocabulary; keep one"
            )
        if names.setdefault(i, name) != name:
            raise ValueError(f"the added token {shown(name)} has the id {i}, which is that of {shown(names[i])}")
    if not ids:
        raise ValueError("the vocabulary is empty")
    return ids


def _check_characters(vocab: dict[str, int], added: Mapping[str, Any], byte_fallback: bool) -> None:
    """Refuse entries of a byte-level vocabulary that stand for no bytes."""
    table = byte_of_character()
    if byte_fallback or not set("".join(vocab)) - table.keys():
        return
    for name in vocab:
        odd = [c for c in name if c not in table]
        if odd and name not in added:
            raise ValueError(
                f"the entry {shown(name)} holds {odd[0]!r}, which stands for no byte in a byte-level vocabulary;"
                f" {SUPPORTED}"
            )


def _around(processor: Any, known: frozenset[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that a post-processor puts before and after a text."""
    if processor is None:
        return (), ()
    kind = processor.get("type") if isinstance(processor, dict) else None
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    if kind == "Sequence" and isinstance(processor.get("processors"), list):
        for part in processor["processors"]:
            left, right = _around(part, known)
            before, after = left + before, after + right
        return before, after
    if kind in ("BertProcessing", "RobertaProcessing"):
        before, after = _pair(processor, "cls"), _pair(processor, "sep")
    elif kind == "TemplateProcessing":
        before, after = _template(processor)
    elif kind != "ByteLevel":
        raise ValueError(
            f"the post-processor is {shown(processor)}; expected ByteLevel, TemplateProcessing, BertProcessing,"
            " RobertaProcessing, or a sequence of them"
        )
    unknown = sorted({*before, *after} - known)
    if unknown:
        raise ValueError(f"the post-processor adds the id {unknown[0]}, which no token has")
    return before, after


def _pair(processor: dict[str, Any], key: str) -> tuple[int, ...]:
    value = processor.get(key)
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError(f"{key} of the post-processor is {shown(value)}; expected a token and its id")
    return (_id(value[1], f"{key} of the post-processor"),)


def _template(processor: dict[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The template for one text: special tokens by name, and the text itself once."""
    parts: Any = processor.get("single")
    tokens: Any = processor.get("special_tokens")
    sides: list[list[int]] = [[]]
    try:
        for part in parts or ():
            if "Sequence" in part:
                sides.append([])
            else:
                ids = tokens[part["SpecialToken"]["id"]]["ids"]
                sides[-1] += [_id(i, "an id of the post-processor") for i in ids]
    except (TypeError, KeyError, AttributeError):
        raise ValueError(f"the template {shown(parts)} of the post-processor is damaged") from None
    if len(sides) != 2:
        raise ValueError(f"the template {shown(parts)} of the post-processor holds the text {len(sides) - 1} times")
    return tuple(sides[0]), tuple(sides[1])


def _has_state(data: dict[str, Any]) -> bool:
    return any(data.get(key) is not None for key in ("truncation", "padding")) or bool(data["model"].get("dropout"))


def _without_state(data: dict[str, Any]) -> str:
    """The file without what belongs to a use of it: what cuts, fills up or randomises texts."""
    model = data["model"] | ({"dropout": None} if "dropout" in data["model"] else {})
    return json.dumps(data | {"truncation": None, "padding": None, "model": model})


def _load(text: str) -> RustTokenizer:
    try:
        return RustTokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare Exception, and panics as BaseException
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the tokenizers library refuses it: {reason if reason.isprintable() else shown(reason):.300}"
        ) from None
